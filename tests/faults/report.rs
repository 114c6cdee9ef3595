//! What came of plans, counted by scenario and fault, and kept in a file where one is named, so that
//! a set can be carried out in parts.
//!
//! Must not know what a plan is about.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::came::Came;
use super::plan::Plan;
use super::scenario::Scenario;

/// Groups of faults, and what stands in the names of those of each; the first that fits counts.
const GROUPS: [(&str, &[&str]); 8] = [
    ("killed, pods deleted", &["pods deleted"]),
    ("killed", &["killed"]),
    ("answer lost", &["answer lost"]),
    ("refused", &["refused"]),
    ("delayed", &["delayed"]),
    ("two operators", &["two"]),
    ("watches and lists", &["watch", "list"]),
    ("swallowed", &["swallowed"]),
];

/// A row of the table.
#[derive(Default)]
struct Row {
    runs: usize,
    ok: usize,
    not_reached: usize,
    /// How many were carried out now, and how long they took.
    timed: usize,
    took: Duration,
}

#[derive(Default)]
pub struct Report {
    rows: BTreeMap<(usize, String), Row>,
    pub failures: Vec<String>,
    next: usize,
    file: Option<PathBuf>,
    /// What stood there in the beginning.
    before: Vec<(usize, String, String)>,
    /// How many stood there that differed: those are carried out again.
    differed: usize,
}

/// Its place in `GROUPS`.
fn group_of(fault: &str) -> usize {
    let is_of = |(_, of): &(&str, &[&str])| of.iter().any(|it| fault.contains(it));
    let group = GROUPS.iter().position(is_of);
    group.expect("each fault is of a group")
}

const OK: &str = "ok";
const DIFFERS: &str = "differs";

fn word(came: &Came) -> &'static str {
    match (came.differences.is_empty(), came.fired) {
        (false, _) => DIFFERS,
        (true, true) => OK,
        (true, false) => "not reached",
    }
}

/// Adds a plan to a file, so that what was carried out in parts can be counted together.
fn note(path: &Path, scenario: &Scenario, plan: &Plan, came: &Came) {
    let word = word(came);
    let line = format!("{}\t{}\t{}\t{word}\n", scenario.name, plan.fault, plan.at);
    let mut options = std::fs::OpenOptions::new();
    let mut file = options.create(true).append(true).open(path).unwrap();
    std::io::Write::write_all(&mut file, line.as_bytes()).unwrap();
}

fn count(of: usize) -> f64 {
    f64::from(u32::try_from(of).unwrap().max(1))
}

impl Row {
    fn count(&mut self, word: &str) {
        match word {
            OK => (self.runs, self.ok) = (self.runs + 1, self.ok + 1),
            DIFFERS => self.runs += 1,
            _ => self.not_reached += 1,
        }
    }
}

impl Report {
    /// With what stands in this file already.
    pub fn new(file: Option<PathBuf>, scenarios: &[Scenario]) -> Self {
        let mut report = Self::default();
        let text = file
            .as_ref()
            .and_then(|it| std::fs::read_to_string(it).ok());
        for line in text.unwrap_or_default().lines() {
            let [name, fault, at, word] = line.split('\t').collect::<Vec<_>>()[..] else {
                panic!("no line of results: {line}");
            };
            let index = scenarios.iter().position(|it| it.name == name);
            let index = index.unwrap_or_else(|| panic!("there is no scenario {name}"));
            // What differed is to be carried out again, and the last word counts.
            if word == DIFFERS {
                report.differed += 1;
            } else {
                let rows = &mut report.rows;
                let row = rows.entry((index, fault.to_owned())).or_default();
                row.count(word);
                report.before.push((index, fault.to_owned(), at.to_owned()));
            }
        }
        report.file = file;
        report
    }

    /// Whether a plan was carried out already, as the file says.
    pub fn has(&self, plan: &Plan) -> bool {
        let is = |(scenario, fault, at): &(usize, String, String)| {
            (*scenario, fault, at) == (plan.scenario, &plan.fault, &plan.at)
        };
        self.before.iter().any(is)
    }

    pub fn take(&mut self, scenarios: &[Scenario], plan: &Plan, came: &Came) {
        self.next += 1;
        if self.next.is_multiple_of(50) {
            println!("{} plans, {} differ", self.next, self.failures.len());
        }
        let row = self
            .rows
            .entry((plan.scenario, plan.fault.clone()))
            .or_default();
        row.timed += 1;
        row.took += came.took;
        row.count(word(came));
        if let Some(path) = &self.file {
            note(path, &scenarios[plan.scenario], plan, came);
        }
        if !came.differences.is_empty() {
            let name = scenarios[plan.scenario].name;
            let mut text = format!("{name} / {} / {}", plan.fault, plan.at);
            for difference in &came.differences {
                let _ = write!(text, "\n    {difference}");
            }
            println!("DIFFERENT {text}");
            self.failures.push(text);
        }
    }

    /// Scenarios and groups of faults of which there were plans, and none came about. (Of a sample
    /// there may be one plan of a group.)
    pub fn unreached(&self, scenarios: &[Scenario]) -> Vec<String> {
        let mut runs: BTreeMap<String, usize> = BTreeMap::new();
        let rows = self.rows.iter();
        let whole = rows.filter(|((scenario, _), _)| scenarios[*scenario].sample.is_none());
        for ((scenario, fault), row) in whole {
            let group = GROUPS[group_of(fault)].0;
            *(runs.entry(format!("{} / {group}", scenarios[*scenario].name))).or_default() +=
                row.runs;
        }
        let unreached = runs.into_iter().filter(|(_, runs)| *runs == 0);
        unreached.map(|(of, _)| of).collect()
    }

    /// Prints the table, and gives back how many plans were carried out.
    pub fn print(&self, scenarios: &[Scenario], took: Duration) -> usize {
        println!(
            "\n{:28} {:32} {:>5} {:>5} {:>6} {:>11} {:>6}",
            "scenario", "fault", "runs", "ok", "differ", "not reached", "s each"
        );
        let mut sum = Row::default();
        for ((scenario, fault), row) in &self.rows {
            let name = scenarios[*scenario].name;
            let differ = row.runs - row.ok;
            println!(
                "{name:28} {fault:32} {:>5} {:>5} {differ:>6} {:>11} {:>6.1}",
                row.runs,
                row.ok,
                row.not_reached,
                row.took.as_secs_f64() / count(row.timed)
            );
            sum.runs += row.runs;
            sum.ok += row.ok;
            sum.not_reached += row.not_reached;
        }
        println!("{}", self.overview(scenarios));
        println!(
            "{} plans in {} s: {} differ, {} were not reached",
            sum.runs,
            took.as_secs(),
            self.failures.len(),
            sum.not_reached
        );
        if self.differed > 0 {
            println!(
                "{} had differed before, and were carried out again",
                self.differed
            );
        }
        sum.runs
    }

    /// The same with a line for each scenario and a column for each group of faults, as Markdown.
    fn overview(&self, scenarios: &[Scenario]) -> String {
        let mut text = format!(
            "\n| scenario | {} | not reached |\n",
            GROUPS.map(|it| it.0).join(" | ")
        );
        let _ = writeln!(text, "|---|{}", "---|".repeat(GROUPS.len() + 1));
        for (index, scenario) in scenarios.iter().enumerate() {
            let rows = self.rows.iter().filter(|((it, _), _)| *it == index);
            let (mut cells, mut not_reached) = ([(0, 0); GROUPS.len()], 0);
            let mut rows = rows.peekable();
            if rows.peek().is_none() {
                continue;
            }
            for ((_, fault), row) in rows {
                let (ok, runs) = &mut cells[group_of(fault)];
                (*ok, *runs) = (*ok + row.ok, *runs + row.runs);
                not_reached += row.not_reached;
            }
            let cells = cells.map(|(ok, runs)| match runs {
                0 => String::new(),
                _ => format!("{ok}/{runs}"),
            });
            let name = scenario.name.replace('|', "\\|");
            let _ = writeln!(text, "| {name} | {} | {not_reached} |", cells.join(" | "));
        }
        text
    }
}
