//! The one frame in which a result leaves a pod: a line of ASCII in the termination message.
//!
//! ```text
//! apscli/1 LENGTH CRC32 BASE64 /apscli
//! ```
//! `BASE64` is the deflated JSON of an [`Outcome`], `LENGTH` its bytes, `CRC32` its checksum in
//! eight hexadecimal digits. The kubelet keeps the last 4096 bytes of the message and may cut that
//! to 12288 bytes shared by a pod's containers, so head and tail both tell of a cut.
//!
//! Must not believe what it reads: whatever runs in the pod can write such a line too.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use miniz_oxide::deflate::compress_to_vec;
use miniz_oxide::inflate::decompress_to_vec_with_limit;

use crate::engine::event::{Captured, Ending, Outcome};
use crate::value::Value;

/// Smallest budget, in bytes: any outcome fits into it once its texts are cut.
pub const MIN_BUDGET: usize = 512;
/// Most bytes of an outcome as JSON; a frame that claims more is refused.
pub const DOCUMENT_LIMIT: usize = 1024 * 1024;

/// Longest text in a frame, in bytes. Only what repeats itself a lot would come near it.
pub const TEXT_LIMIT: usize = 64 * 1024;

const NAME: &str = "apscli/";
const VERSION: u32 = 1;
const TAIL: &str = " /apscli\n";
/// Level of deflate: the document is small, and each byte saved is a byte of output kept.
const LEVEL: u8 = 9;
/// The name in `truncated` of the words with which an ending says more.
const MESSAGE: &str = "message";

/// Why a termination message gives no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// There is none.
    #[error("there is no result in the termination message")]
    Missing,
    /// A part of it is not there.
    #[error("the result in the termination message was cut")]
    Cut,
    /// Not what was written.
    #[error("the result in the termination message is damaged: {0}")]
    Corrupt(&'static str),
    /// Written by another version of apscli.
    #[error(
        "the result is of version {0}, expected {VERSION}: operator and apscli-node do not belong together"
    )]
    OtherVersion(u32),
}

/// Writes an outcome as a frame of at most `budget` bytes (at least [`MIN_BUDGET`]).
///
/// What does not fit is cut off the largest texts, as little as there must be, and counted in
/// `truncated`. A list or an object that is cut becomes the text of its JSON.
#[must_use]
pub fn encode(outcome: &Outcome, budget: usize) -> String {
    let budget = budget.max(MIN_BUDGET);
    let fitting = |longest| Some(frame(&cut(outcome, longest)?)).filter(|f| f.len() <= budget);
    let whole = largest(outcome).min(TEXT_LIMIT);
    if let Some(frame) = fitting(whole) {
        return frame;
    }
    // Upwards first: what does not fit by far would take long to compress.
    let mut fits = (0, fitting(0).unwrap_or_default());
    let mut too_long = 64;
    while let Some(frame) = Some(too_long).filter(|l| *l < whole).and_then(&fitting) {
        fits = (too_long, frame);
        too_long *= 2;
    }
    too_long = too_long.min(whole);
    while fits.0 + 1 < too_long {
        let middle = fits.0.midpoint(too_long);
        match fitting(middle) {
            Some(frame) => fits = (middle, frame),
            None => too_long = middle,
        }
    }
    fits.1
}

/// Reads a termination message.
pub fn decode(message: &str) -> Result<Outcome, FrameError> {
    let message = message.trim_ascii_end();
    let tail = message.strip_suffix(TAIL.trim_ascii_end());
    let Some(rest) = message.strip_prefix(NAME) else {
        return Err(tail.map_or(FrameError::Missing, |_| FrameError::Cut));
    };
    let (version, rest) = rest.split_once(' ').ok_or(FrameError::Cut)?;
    let version: u32 = version
        .parse()
        .map_err(|_| FrameError::Corrupt("its version is no number"))?;
    if version != VERSION {
        return Err(FrameError::OtherVersion(version));
    }
    if tail.is_none() {
        return Err(FrameError::Cut);
    }
    let payload = rest
        .splitn(3, ' ')
        .nth(2)
        .and_then(|rest| rest.strip_suffix(TAIL.trim_ascii_end()))
        .ok_or(FrameError::Cut)?;
    // One text for one payload: what differs anywhere is not what was written.
    if message != wrap(payload).trim_ascii_end() {
        let length = rest.split(' ').next().and_then(|text| text.parse().ok());
        return Err(match length {
            Some(length) if payload.len() < length => FrameError::Cut,
            _ => FrameError::Corrupt("its checksum is wrong"),
        });
    }
    let deflated = STANDARD
        .decode(payload)
        .map_err(|_| FrameError::Corrupt("it is not base64"))?;
    let document = decompress_to_vec_with_limit(&deflated, DOCUMENT_LIMIT)
        .map_err(|_| FrameError::Corrupt("it does not inflate within 1 MiB"))?;
    serde_json::from_slice(&document).map_err(|_| FrameError::Corrupt("it is no outcome"))
}

fn frame(document: &[u8]) -> String {
    wrap(&STANDARD.encode(compress_to_vec(document, LEVEL)))
}

fn wrap(payload: &str) -> String {
    let checksum = crc32fast::hash(payload.as_bytes());
    let length = payload.len();
    format!("{NAME}{VERSION} {length} {checksum:08x} {payload}{TAIL}")
}

/// The outcome as JSON with no text longer than `longest` bytes; none: it is still too much.
fn cut(outcome: &Outcome, longest: usize) -> Option<Vec<u8>> {
    let mut outcome = outcome.clone();
    let Captured {
        output,
        err_msg,
        err_code,
        info,
        truncated,
    } = &mut outcome.captured;
    // Only these are ever cut; names of other fields would be room for anything.
    let fields = [
        ("output", output),
        ("err_msg", err_msg),
        ("err_code", err_code),
        ("info", info),
    ];
    truncated.retain(|name, _| name == MESSAGE || fields.iter().any(|(known, _)| known == name));
    let mut count = |name: &str, lost: usize| {
        let counted = truncated.entry(name.to_owned()).or_default();
        *counted = counted.saturating_add(lost as u64);
    };
    for (name, field) in fields {
        let Some(value) = field else { continue };
        let text = plain(value);
        let kept = text.floor_char_boundary(longest);
        if kept < text.len() {
            count(name, text.len() - kept);
            *value = Value::from(text.get(..kept).unwrap_or_default());
        }
    }
    if let Some(message) = message(&mut outcome.ending) {
        let kept = message.floor_char_boundary(longest);
        if kept < message.len() {
            count(MESSAGE, message.len() - kept);
            message.truncate(kept);
        }
    }
    let document = serde_json::to_vec(&outcome).ok()?;
    (document.len() <= DOCUMENT_LIMIT).then_some(document)
}

fn plain(value: &Value) -> Cow<'_, str> {
    match value {
        Value::String(text) => Cow::Borrowed(text),
        other => Cow::Owned(other.to_plain_text()),
    }
}

fn message(ending: &mut Ending) -> Option<&mut String> {
    match ending {
        Ending::NotStarted(message)
        | Ending::Exception(message)
        | Ending::NoResult(message)
        | Ending::Lost(message) => Some(message),
        Ending::Exited(_) | Ending::Signalled(_) | Ending::Returned(_) | Ending::Killed(_) => None,
    }
}

/// Bytes of the longest text.
fn largest(outcome: &Outcome) -> usize {
    let captured = &outcome.captured;
    [
        &captured.output,
        &captured.err_msg,
        &captured.err_code,
        &captured.info,
    ]
    .into_iter()
    .flatten()
    .map(|value| plain(value).len())
    .chain(message(&mut outcome.ending.clone()).map(|message| message.len()))
    .max()
    .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::event::KillCause;
    use proptest::prelude::*;

    fn outcome(ending: Ending, output: &str) -> Outcome {
        let mut outcome = Outcome::silent(ending);
        outcome.captured.output = Some(Value::from(output));
        outcome
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::Bool),
            "(0|-?[1-9][0-9]{0,30})(\\.[0-9]{1,5})?".prop_map(Value::Number),
            ".{0,40}".prop_map(Value::String),
            "(é|x|\n|\u{1}|节){0,3000}".prop_map(Value::String),
        ];
        leaf.prop_recursive(3, 20, 5, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..5).prop_map(Value::List),
                proptest::collection::btree_map("[a-z]{1,5}", inner, 0..5)
                    .prop_map(|map| Value::Map(map.into_iter().collect())),
            ]
        })
    }

    fn ending() -> impl Strategy<Value = Ending> {
        prop_oneof![
            any::<i32>().prop_map(Ending::Exited),
            any::<i32>().prop_map(Ending::Signalled),
            any::<i64>().prop_map(Ending::Returned),
            "(.|節){0,6000}".prop_map(Ending::NotStarted),
            ".{0,60}".prop_map(Ending::Exception),
            ".{0,60}".prop_map(Ending::NoResult),
            ".{0,60}".prop_map(Ending::Lost),
            Just(Ending::Killed(KillCause::NodeTimeout)),
        ]
    }

    fn any_outcome() -> impl Strategy<Value = Outcome> {
        let field = || proptest::option::of(value());
        let truncated = proptest::collection::btree_map(
            prop_oneof![Just("output".to_owned()), Just("info".to_owned())],
            any::<u64>(),
            0..2,
        );
        (ending(), field(), field(), field(), field(), truncated).prop_map(
            |(ending, output, err_msg, err_code, info, truncated)| Outcome {
                ending,
                captured: Captured {
                    // `null` is read back as nothing said.
                    output: output.filter(|value| *value != Value::Null),
                    err_msg: err_msg.filter(|value| *value != Value::Null),
                    err_code: err_code.filter(|value| *value != Value::Null),
                    info: info.filter(|value| *value != Value::Null),
                    truncated,
                },
            },
        )
    }

    /// Text that deflate makes nothing of.
    fn noise(length: usize) -> String {
        let mut state = 1_u64;
        std::iter::repeat_with(|| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            char::from(b'!' + u8::try_from((state >> 33) % 90).unwrap())
        })
        .take(length)
        .collect()
    }

    #[test]
    fn a_small_result_takes_few_bytes() {
        let frame = encode(
            &outcome(Ending::Exited(0), " ip: 10.6.1.110 allocated"),
            4096,
        );
        assert!(frame.len() < 140, "{} bytes: {frame}", frame.len());
        assert!(frame.is_ascii() && frame.ends_with('\n'));
    }

    #[test]
    fn the_largest_field_is_cut_and_as_little_of_it_as_there_must_be() {
        let mut long = outcome(Ending::Exited(3), &noise(100_000));
        long.captured.err_msg = Some(Value::from("what matters"));
        long.captured.truncated.insert("output".to_owned(), 5);
        let frame = encode(&long, 4096);
        assert!((4000..=4096).contains(&frame.len()), "{}", frame.len());
        let read = decode(&frame).unwrap();
        assert_eq!(read.ending, long.ending);
        assert_eq!(read.captured.err_msg, long.captured.err_msg);
        let Some(Value::String(kept)) = read.captured.output else {
            panic!("no output")
        };
        assert!(noise(100_000).starts_with(&kept));
        assert_eq!(
            read.captured.truncated["output"],
            5 + (100_000 - kept.len()) as u64
        );
    }

    #[test]
    fn megabytes_are_cut() {
        for text in [noise(1 << 20), "\0".repeat(1 << 20), "é\n".repeat(1 << 18)] {
            let mut long = outcome(Ending::Exception(text.clone()), &text);
            long.captured.err_msg = Some(Value::from(text.as_str()));
            long.captured.info = Some(Value::List(vec![Value::from(text)]));
            let read = decode(&encode(&long, 4096)).unwrap();
            assert!(read.captured.truncated.contains_key("output"));
            assert!(read.captured.truncated.contains_key("message"));
        }
    }

    #[test]
    fn each_damage_has_its_name() {
        let frame = encode(&outcome(Ending::Exited(1), "x"), 4096);
        assert_eq!(decode(""), Err(FrameError::Missing));
        assert_eq!(decode("killed\n"), Err(FrameError::Missing));
        assert_eq!(decode(&frame[7..]), Err(FrameError::Cut));
        assert_eq!(decode(&frame[..frame.len() - 12]), Err(FrameError::Cut));
        assert_eq!(decode(&frame[..9]), Err(FrameError::Cut));
        let newer = frame.replacen("apscli/1 ", "apscli/2 ", 1);
        assert_eq!(decode(&newer), Err(FrameError::OtherVersion(2)));
        let holed = frame.replacen(&frame[30..34], "", 1);
        assert_eq!(decode(&holed), Err(FrameError::Cut));
        assert!(matches!(decode(&wrap("AAAA")), Err(FrameError::Corrupt(_))));
        assert!(matches!(decode(&wrap("#")), Err(FrameError::Corrupt(_))));
    }

    #[test]
    fn a_small_frame_cannot_claim_much_memory() {
        let text = "x".repeat(DOCUMENT_LIMIT);
        let bomb = serde_json::to_vec(&outcome(Ending::Exited(0), &text)).unwrap();
        let frame = frame(&bomb);
        assert!(frame.len() < 4096, "{}", frame.len());
        assert_eq!(
            decode(&frame),
            Err(FrameError::Corrupt("it does not inflate within 1 MiB"))
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn what_fits_is_read_back_as_it_was(outcome in any_outcome()) {
            let frame = encode(&outcome, 1 << 20);
            prop_assert_eq!(decode(&frame), Ok(outcome));
        }

        #[test]
        fn no_frame_is_over_its_budget(outcome in any_outcome(), budget in 0_usize..5000) {
            let frame = encode(&outcome, budget);
            prop_assert!(frame.len() <= budget.max(MIN_BUDGET), "{} > {budget}", frame.len());
            let read = decode(&frame).unwrap();
            let cut = read.captured.truncated != outcome.captured.truncated;
            prop_assert_eq!(cut, read != outcome);
        }

        #[test]
        fn every_cut_and_every_flipped_bit_is_seen(
            outcome in any_outcome(),
            at in any::<prop::sample::Index>(),
            bit in 0_u8..8,
        ) {
            let frame = encode(&outcome, 1024);
            let line = frame.trim_ascii_end();
            let at = at.index(line.len());
            prop_assert!(decode(&line[..at]).is_err());
            prop_assert!(decode(&line[at + 1..]).is_err());
            let mut bytes = line.as_bytes().to_vec();
            bytes[at] ^= 1 << bit;
            prop_assert!(decode(&String::from_utf8_lossy(&bytes)).is_err());
        }

        #[test]
        fn any_text_is_taken(text in "(apscli/1 |[0-9]{1,9} |[a-f0-9]{8} | /apscli|.|\n){0,12}") {
            let _ = decode(&text);
        }
    }
}
