//! What a pod is told: one attempt, complete, as JSON that `apscli-node` reads.
//!
//! Must not hold what differs between two makings of the same attempt (times, what is left of the
//! run's time): its hash tells whether a pod that is there already is the one that was meant.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::engine::spec::{Action, EnvPart, EnvText};
use crate::value::Value;

/// The environment variable of a container that holds the decision.
pub const ENV: &str = "APSCLI_DECISION";
/// Where `apscli-node` and the extension module stand in a container.
pub const BIN: &str = "/apscli/bin";
/// Where scripts are mounted; relative paths of a template are relative to it.
pub const SCRIPTS: &str = "/apscli/scripts";
/// Where values of Secrets are mounted, a file a parameter.
pub const SECRETS: &str = "/apscli/secrets";
/// The folder in which an action starts, empty and writable.
pub const WORK: &str = "/apscli/work";
/// Bytes of a termination message that the kubelet keeps.
pub const BUDGET: usize = 4096;

/// The only version of [`Work`] so far.
const VERSION: u32 = 1;

/// One attempt, as a pod is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// The version of this form.
    version: u32,
    /// What is to be done.
    pub action: Action,
    /// Its arguments in written order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub param: Vec<(String, Value)>,
    /// Longest time that the action may run, in milliseconds from its own start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Time between TERM and KILL when the action is ended, in milliseconds.
    pub grace_ms: u64,
    /// The folder of relative paths.
    pub folder: String,
    /// Texts that stand for secrets, and the files that hold what they stand for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub secrets: BTreeMap<String, String>,
    /// Most bytes of the result's frame.
    pub budget: usize,
    /// What all files below `folder` must be before anything is started, as
    /// [`super::scripts::manifest`] has it; none: nothing is checked (there are no scripts, or an
    /// operator up to 0.1.0 made the decision). It is not part of the decision's [`hash`], so that
    /// pods of such an operator are recognized.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scripts: Option<String>,
}

/// Why a text is no decision.
#[derive(Debug, thiserror::Error)]
pub enum WorkError {
    /// Not JSON of this form.
    #[error("the decision cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// Made by another version of apscli.
    #[error(
        "the decision is of version {found}, expected {VERSION}: operator and apscli-node do not belong together"
    )]
    OtherVersion {
        /// Its version.
        found: u64,
    },
}

impl Work {
    /// An attempt without timeout and secrets, in a pod's usual places.
    #[must_use]
    pub fn new(action: Action, param: Vec<(String, Value)>, grace: Duration) -> Self {
        Self {
            version: VERSION,
            action,
            param,
            timeout_ms: None,
            grace_ms: millis(grace),
            folder: SCRIPTS.to_owned(),
            secrets: BTreeMap::new(),
            budget: BUDGET,
            scripts: None,
        }
    }

    /// The decision as the value of an environment variable. No `$` is in it: Kubernetes turns
    /// `$$` into `$` and fills in `$(NAME)` in such values.
    pub fn to_json(&self) -> Result<String, serde_json::Error> {
        // Only texts can hold a dollar sign, so its escape means the same.
        serde_json::to_string(self).map(|json| json.replace('$', "\\u0024"))
    }

    /// Reads what [`Work::to_json`] wrote.
    pub fn from_json(text: &str) -> Result<Self, WorkError> {
        #[derive(Deserialize)]
        struct Version {
            version: u64,
        }
        let Version { version } = serde_json::from_str(text)?;
        if version != u64::from(VERSION) {
            return Err(WorkError::OtherVersion { found: version });
        }
        Ok(serde_json::from_str(text)?)
    }

    /// How long the action has between TERM and KILL.
    #[must_use]
    pub fn grace(&self) -> Duration {
        Duration::from_millis(self.grace_ms)
    }

    /// Longest time that the action may run.
    #[must_use]
    pub fn timeout(&self) -> Option<Duration> {
        self.timeout_ms.map(Duration::from_millis)
    }

    /// Whether some text names this token.
    #[must_use]
    pub fn names(&self, token: &str) -> bool {
        let mut revealed = self.clone();
        revealed.reveal(&BTreeMap::from([(token.to_owned(), String::new())]));
        revealed != *self
    }

    /// Puts the values of secrets in the place of the texts that stand for them: in arguments,
    /// environment, paths and parameters, also inside longer texts.
    pub fn reveal(&mut self, values: &BTreeMap<String, String>) {
        let texts: Vec<&mut EnvText> = match &mut self.action {
            Action::Cmd(cmd) => std::iter::once(&mut cmd.program)
                .chain(&mut cmd.args)
                .chain(cmd.env.iter_mut().map(|(_, text)| text))
                .collect(),
            Action::Api(api) => (api.path.iter_mut())
                .chain(api.env.iter_mut().map(|(_, text)| text))
                .collect(),
        };
        for part in texts.into_iter().flat_map(|text| &mut text.parts) {
            if let EnvPart::Literal(literal) = part {
                replace_all(literal, values);
            }
        }
        for (_, value) in &mut self.param {
            for_each_text(value, &mut |text| replace_all(text, values));
        }
    }
}

/// Replaces names by values, from left to right. A value that looks like a name stays as it is.
pub fn replace_all(text: &mut String, values: &BTreeMap<String, String>) {
    let mut done = String::new();
    let mut rest = text.as_str();
    while let Some((before, after, value)) = values
        .iter()
        .filter(|(name, _)| !name.is_empty())
        .filter_map(|(name, value)| {
            let (before, after) = rest.split_once(name.as_str())?;
            Some((before, after, value))
        })
        // Of two that begin at one place, the longer: what is left after it is shorter.
        .min_by_key(|(before, after, _)| (before.len(), after.len()))
    {
        done.push_str(before);
        done.push_str(value);
        rest = after;
    }
    if rest.len() < text.len() {
        done.push_str(rest);
        *text = done;
    }
}

/// Visits every text of a value, names of members excepted.
pub fn for_each_text(value: &mut Value, visit: &mut dyn FnMut(&mut String)) {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
        Value::String(text) => visit(text),
        Value::List(items) => {
            for item in items {
                for_each_text(item, visit);
            }
        }
        Value::Map(members) => {
            for (_, member) in members {
                for_each_text(member, visit);
            }
        }
    }
}

/// The text that stands for a secret parameter in a filled template, until it is in its pod.
#[must_use]
pub fn secret_token(run_uid: &str, param: &str) -> String {
    format!("⟦apscli-secret:{run_uid}:{param}⟧")
}

/// The hash of a decision's JSON, 64 hexadecimal digits.
#[must_use]
pub fn hash(json: &str) -> String {
    hex(&Sha256::digest(json))
}

/// Bytes as lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Whole milliseconds, rounded up, so that no timeout becomes nought.
#[must_use]
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::spec::{Api, Cmd};

    fn work(param: &str) -> Work {
        let cmd = Cmd {
            program: EnvText::literal("./a"),
            args: vec![EnvText {
                parts: vec![
                    EnvPart::Home,
                    EnvPart::Literal("$$(X)⟦t⟧".to_owned()),
                    EnvPart::Variable("V".to_owned()),
                ],
            }],
            env: vec![("E".to_owned(), EnvText::literal("is ⟦t⟧."))],
        };
        let param = serde_json::from_str::<Value>(param).unwrap();
        let param = vec![("p".to_owned(), param)];
        Work::new(Action::Cmd(cmd), param, Duration::from_secs(30))
    }

    #[test]
    fn a_decision_survives_kubernetes_and_keeps_its_numbers() {
        let mut work = work(r#"{"b": 1.10, "a": ["$$", "$(HOME)", 12345678901234567890]}"#);
        work.timeout_ms = Some(1);
        let json = work.to_json().unwrap();
        assert!(!json.contains('$'), "{json}");
        assert_eq!(Work::from_json(&json).unwrap(), work);
        assert_eq!(
            hash("").get(..8),
            Some("e3b0c442"),
            "SHA-256 of nothing begins so"
        );
        assert_eq!(millis(Duration::from_nanos(1)), 1);
    }

    #[test]
    fn an_api_survives_too() {
        let api = Api {
            module: "m".to_owned(),
            function: "f".to_owned(),
            path: vec![EnvText::literal(".")],
            env: Vec::new(),
        };
        let work = Work::new(Action::Api(api), Vec::new(), Duration::ZERO);
        let json = work.to_json().unwrap();
        assert_eq!(Work::from_json(&json).unwrap(), work);
    }

    #[test]
    fn other_texts_are_refused_in_words() {
        let json = work("1").to_json().unwrap();
        let newer = json.replace("\"version\":1", "\"version\":2");
        let error = Work::from_json(&newer).unwrap_err().to_string();
        assert!(error.contains("version 2, expected 1"), "{error}");
        let error = Work::from_json("{}").unwrap_err().to_string();
        assert!(error.contains("missing field `version`"), "{error}");
    }

    #[test]
    fn secrets_come_in_wherever_a_text_names_them() {
        let mut work = work(r#"["⟦t⟧", {"⟦t⟧": "a⟦t⟧b⟦t⟧"}, 1]"#);
        work.reveal(&BTreeMap::from([("⟦t⟧".to_owned(), "$S".to_owned())]));
        assert_eq!(
            work.param[0].1.to_string(),
            r#"["$S",{"⟦t⟧":"a$Sb$S"},1]"#,
            "a member's name is no place for a secret"
        );
        let Action::Cmd(cmd) = &work.action else {
            panic!("no cmd")
        };
        assert_eq!(cmd.args[0].parts[1], EnvPart::Literal("$$(X)$S".to_owned()));
        assert_eq!(cmd.env[0].1, EnvText::literal("is $S."));
    }

    #[test]
    fn a_secret_that_looks_like_another_is_left_alone() {
        let values = [("<a>", "<b>"), ("<b>", "")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let mut text = "<b>x<a><b><a>".to_owned();
        replace_all(&mut text, &BTreeMap::from(values));
        assert_eq!(text, "x<b><b>");
    }
}
