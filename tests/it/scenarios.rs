//! Scripts of the pure engine: each file of `tests/scenarios` is played, and what it prints is
//! compared with its snapshot.
//!
//! Commands: `load` (the template follows, up to a line `end`), `limits parallel=N timeout=S
//! on_lost=retry`, `at +S`, `step`, `ok NODE`, `fail NODE CODE`, `signal NODE N`, `raise NODE
//! WORDS`, `refuse NODE WORDS` (could not start), `lose NODE`, `killed NODE`, `cancel`,
//! `suspend`, `resume`, `crash` (all memory is lost but the recorded events; what ran is lost),
//! `show`. An event that the engine refuses is printed, not hidden.

use std::fmt::Write;
use std::num::NonZeroUsize;
use std::time::Duration;

use apscli::engine::event::{CancelCause, Ending, Event, KillCause, Outcome};
use apscli::engine::graph::{Graph, NodeIx};
use apscli::engine::name::Attempt;
use apscli::engine::state::{NodeState, RunState};
use apscli::engine::step::{Decision, Limits, OnLost, step, waiting};
use apscli::template::{Filling, Params, Template};
use jiff::Timestamp;

struct Player {
    graph: Graph,
    state: RunState,
    limits: Limits,
    events: Vec<Event>,
    seconds: i64,
    said: String,
}

impl Player {
    fn new(template: &str) -> Self {
        let params = Params::new();
        let graph = Template::read("scenario.yaml", template)
            .and_then(|template| template.graph(Filling::With(&params)))
            .unwrap_or_else(|problems| panic!("{problems}"));
        let state = RunState::new(&graph);
        let mut player = Self {
            graph,
            state,
            limits: Limits::default(),
            events: Vec::new(),
            seconds: 0,
            said: String::new(),
        };
        let at = player.now();
        player.take(Event::RunStarted { at });
        player
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + self.seconds).unwrap()
    }

    fn say(&mut self, line: &str) {
        writeln!(self.said, "    {line}").unwrap();
    }

    fn take(&mut self, event: Event) {
        match self.state.fold(&self.graph, &event) {
            Ok(()) => self.events.push(event),
            Err(error) => self.say(&format!("refused: {error}")),
        }
    }

    fn node(&self, name: &str) -> NodeIx {
        self.graph
            .find(name)
            .unwrap_or_else(|| panic!("no node {name}"))
    }

    /// The end of the attempt that the player was told of last, be it running or not.
    fn end(&mut self, name: &str, ending: Ending) {
        let node = self.node(name);
        let attempt = match self.state.node(node) {
            NodeState::Running(running) => running.attempt,
            NodeState::Lost { was, .. } => was.attempt,
            NodeState::Finished(finished) => {
                finished.ran.map_or(Attempt::FIRST, |(attempt, _)| attempt)
            }
            NodeState::Pending => Attempt::FIRST,
        };
        let at = self.now();
        self.take(Event::Ended {
            node,
            attempt,
            outcome: Outcome::silent(ending),
            at,
        });
    }

    fn step(&mut self) {
        loop {
            let now = self.now();
            let next = step(&self.graph, &self.state, &self.limits, now);
            for decision in &next.decisions {
                let name = |node: &NodeIx| self.graph.name(*node).to_string();
                let line = match decision {
                    Decision::Start { node, attempt } => {
                        format!("start {} attempt {attempt}", name(node))
                    }
                    Decision::Kill {
                        node,
                        attempt,
                        cause,
                    } => format!("kill {} attempt {attempt}: {cause:?}", name(node)),
                    Decision::Skip { node, reason } => {
                        format!("skip {}: {}", name(node), reason.message)
                    }
                    Decision::GiveUp { node } => format!("give up {}", name(node)),
                    Decision::Cancel { cause } => format!("cancel: {cause:?}"),
                };
                self.say(&line);
                self.take(decision.event(now));
            }
            if next.decisions.is_empty() {
                if let Some(verdict) = next.verdict {
                    self.say(&format!(
                        "the run is {} with return code {}",
                        verdict.phase, verdict.return_code
                    ));
                } else if let Some(at) = next.wake_at {
                    self.say(&format!("wake at +{}", at.as_second() - 1_800_000_000));
                }
                return;
            }
        }
    }

    fn show(&mut self) {
        let reasons: Vec<(NodeIx, String)> = waiting(&self.graph, &self.state, &self.limits)
            .map(|(node, why)| (node, why.to_string()))
            .collect();
        let lines: Vec<String> = self
            .state
            .iter()
            .map(|(node, state)| {
                let why = reasons
                    .iter()
                    .find(|(idle, _)| *idle == node)
                    .map(|(_, why)| why.clone());
                let why = why.or_else(|| match state {
                    NodeState::Finished(finished) => {
                        finished.reason.as_ref().map(ToString::to_string)
                    }
                    _ => None,
                });
                format!(
                    "{}: {} {}",
                    self.graph.name(node),
                    state.phase(),
                    why.unwrap_or_default()
                )
            })
            .collect();
        for line in lines {
            self.say(line.trim_end());
        }
    }

    fn crash(&mut self) {
        let mut state = RunState::new(&self.graph);
        for event in &self.events {
            state.fold(&self.graph, event).unwrap();
        }
        assert_eq!(state, self.state, "the recorded events are the state");
        let running: Vec<NodeIx> = state.running().collect();
        self.state = state;
        for node in running {
            let name = self.graph.name(node).to_string();
            self.end(&name, Ending::Lost("apscli ended".to_owned()));
        }
    }

    fn play(&mut self, line: &str) {
        let mut words = line.split(' ');
        let command = words.next().unwrap_or_default();
        let rest: Vec<&str> = words.collect();
        let number = |index: usize| rest[index].parse().unwrap_or_else(|_| panic!("{line}"));
        match command {
            "limits" => {
                for word in &rest {
                    match word.split_once('=').unwrap_or_else(|| panic!("{line}")) {
                        ("parallel", n) => {
                            self.limits.parallelism = NonZeroUsize::new(n.parse().unwrap());
                        }
                        ("timeout", s) => {
                            self.limits.timeout = Some(Duration::from_secs(s.parse().unwrap()));
                        }
                        ("on_lost", "retry") => self.limits.on_lost = OnLost::Retry,
                        _ => panic!("{line}"),
                    }
                }
            }
            "at" => self.seconds += rest[0].trim_start_matches('+').parse::<i64>().unwrap(),
            "step" => self.step(),
            "ok" => self.end(rest[0], Ending::Exited(0)),
            "fail" => self.end(rest[0], Ending::Exited(number(1))),
            "signal" => self.end(rest[0], Ending::Signalled(number(1))),
            "raise" => self.end(rest[0], Ending::Exception(rest[1..].join(" "))),
            "refuse" => self.end(rest[0], Ending::NotStarted(rest[1..].join(" "))),
            "lose" => self.end(rest[0], Ending::Lost("gone".to_owned())),
            "killed" => {
                let NodeState::Running(running) = self.state.node(self.node(rest[0])) else {
                    panic!("{line}")
                };
                let cause = match rest.get(1) {
                    // Whoever carries it out keeps the run's time as well.
                    Some(&"overtime") => KillCause::Cancel(CancelCause::Timeout),
                    _ => running
                        .killing
                        .unwrap_or_else(|| panic!("{line}: nobody killed it")),
                };
                self.end(rest[0], Ending::Killed(cause));
            }
            "cancel" => {
                let at = self.now();
                self.take(Event::Cancelled {
                    cause: CancelCause::Asked,
                    at,
                });
            }
            "suspend" => self.take(Event::Suspended(true)),
            "resume" => self.take(Event::Suspended(false)),
            "crash" => self.crash(),
            "show" => self.show(),
            _ => panic!("unknown command: {line}"),
        }
    }
}

fn transcript(script: &str) -> String {
    let mut said = String::new();
    let mut player: Option<Player> = None;
    let mut lines = script.lines();
    while let Some(line) = lines.next() {
        if line.is_empty() || line.starts_with('#') {
            said.push_str(line);
            said.push('\n');
        } else if line == "load" {
            let template: Vec<&str> = lines.by_ref().take_while(|line| *line != "end").collect();
            player = Some(Player::new(&template.join("\n")));
        } else {
            writeln!(said, "> {line}").unwrap();
            let player = player.as_mut().expect("load comes first");
            player.play(line);
            said.push_str(&std::mem::take(&mut player.said));
        }
    }
    said
}

#[test]
fn every_script_says_what_its_snapshot_says() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() >= 8, "{files:?}");
    for file in files {
        let name = file.file_stem().unwrap().to_string_lossy().into_owned();
        let script = std::fs::read_to_string(&file).unwrap();
        insta::assert_snapshot!(name, transcript(&script));
    }
}
