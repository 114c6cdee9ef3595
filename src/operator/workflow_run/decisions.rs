//! Carries out what was decided: begins and ends pods and processes, each once it may be.
//!
//! Must not decide, nor await: calls answer as news.

use std::sync::Arc;

use jiff::Timestamp;

use crate::engine::event::{CancelCause, Ending, KillCause};
use crate::engine::graph::NodeIx;
use crate::engine::name::Attempt;
use crate::engine::step::Decision;
use crate::operator::apply::{Order, Work};
use crate::operator::{resolve, runner};

use super::{Actor, BACKLOG, Made, QUEUED, Record};

impl Actor {
    pub(super) fn apply(&mut self, decision: &Decision) {
        match decision {
            Decision::Start { node, attempt } if self.is_process(*node) => {
                self.queue(*node, *attempt);
            }
            Decision::Start { node, attempt } => {
                let free = *attempt == Attempt::FIRST
                    && !(self.program.record_first && self.recorded == 0);
                let made = if free {
                    Made::Making
                } else {
                    Made::AfterRecord(self.version)
                };
                self.create(*node, *attempt, made);
            }
            Decision::Kill { node, .. } => self.kill(*node),
            // Nothing to do beyond the record.
            Decision::Skip { .. } | Decision::GiveUp { .. } | Decision::Cancel { .. } => {}
        }
    }

    pub(super) fn queue(&mut self, ix: NodeIx, attempt: Attempt) {
        let mut record = self.record(ix, attempt, Made::Queued);
        record.waits = Some((QUEUED.to_owned(), "waits for its turn".to_owned()));
        self.records.insert(ix, record);
        self.queued.insert(ix);
        self.publisher.touch_node(ix);
    }

    /// Puts process nodes on record as begun, many with one write; once it stands they are handed
    /// to the runner. A pod's name tells whether it was made; of a process nothing does, so a
    /// record without it would let a restarted operator begin it again.
    pub(super) fn intend(&mut self) {
        let (few, most) = BACKLOG;
        let held = self.state.is_suspended() && self.state.cancelled().is_none();
        if self.queued.is_empty() || self.backlog.len() > few || held {
            return;
        }
        self.version += 1;
        for _ in self.backlog.len()..most {
            let Some(ix) = self.queued.pop_first() else {
                break;
            };
            if let Some(record) = self.records.get_mut(&ix) {
                record.made = Made::AfterRecord(self.version);
                record.waits = None;
                self.backlog.insert(ix);
                self.publisher.touch_node(ix);
            }
        }
        self.publisher.hurry();
    }

    pub(super) fn hand_over(&mut self, ix: NodeIx, attempt: Attempt) {
        let graph = self.graph();
        let (Some(runner), Some(record)) = (&self.context.runner, self.records.get_mut(&ix)) else {
            return;
        };
        record.made = Made::Making;
        runner.start(runner::Start {
            piece: self.program.piece(ix, attempt),
            work: Work { node: ix, attempt },
            decision: Box::new(resolve::decision(graph.node(ix))),
            network: self.program.network,
            files: Arc::clone(&self.program.files),
            answers: self.hand.answers(),
        });
        if let Some(since) = self.heard {
            self.context.metrics.handed_off(since.elapsed());
        }
    }

    pub(super) fn create(&mut self, ix: NodeIx, attempt: Attempt, made: Made) {
        let record = self.record(ix, attempt, made);
        self.waiting.remove(&ix);
        let call_off = record.call_off.clone();
        self.records.insert(ix, record);
        if made != Made::Making {
            self.publisher.hurry();
            return;
        }
        let started = self.state.started_at();
        let ends = self
            .limits
            .timeout
            .zip(started)
            .map(|(timeout, started)| started.checked_add(timeout).unwrap_or(Timestamp::MAX));
        let order = Order {
            program: Arc::clone(&self.program),
            ends,
        };
        let work = Work { node: ix, attempt };
        self.hand.create(work, order, call_off, self.heard);
    }

    fn kill(&mut self, ix: NodeIx) {
        let cause = self.killing(ix);
        let Some(record) = self.records.get_mut(&ix) else {
            return;
        };
        let cause = cause.unwrap_or(KillCause::Cancel(CancelCause::Asked));
        match record.made {
            Made::AfterRecord(_) | Made::Queued => {
                record.made = Made::Never;
                let attempt = record.attempt;
                self.queued.remove(&ix);
                self.backlog.remove(&ix);
                let now = self.context.clock.now();
                self.end_silent(ix, attempt, Ending::Killed(cause), now);
            }
            Made::Making | Made::There if self.program.processes.contains(&ix) => {
                let piece = self.program.piece(ix, record.attempt);
                if let Some(runner) = &self.context.runner {
                    runner.kill(piece, cause);
                }
            }
            Made::Making => record.call_off.call_off(),
            Made::There => self.delete(ix),
            Made::Never => {}
        }
    }

    pub(super) fn delete(&self, ix: NodeIx) {
        if let Some(Record {
            name,
            uid: Some(uid),
            ..
        }) = self.records.get(&ix)
        {
            self.hand.delete(name.clone(), uid.clone());
        }
    }
}
