//! Gzip (RFC 1952): what a `ConfigMap` cannot hold as it is, it often can compressed.
//!
//! Must not inflate without a bound: a megabyte may unfold to a thousand.

use miniz_oxide::deflate::compress_to_vec;
use miniz_oxide::inflate::stream::{InflateState, inflate};
use miniz_oxide::{DataFormat, MZFlush, MZStatus};

/// Most bytes that a text may unfold to. A template of 20,000 nodes with 400 bytes each is as
/// large.
pub const LARGEST: usize = 8 * 1024 * 1024;

/// The first bytes of everything compressed with gzip.
const MAGIC: [u8; 2] = [0x1f, 0x8b];
/// The only method that there is: deflate.
const DEFLATE: u8 = 8;
/// Size where time and size are about even.
const LEVEL: u8 = 6;

// Flags of a header, RFC 1952, section 2.3.1.
const HEADER_CRC: u8 = 2;
const EXTRA: u8 = 4;
const NAME: u8 = 8;
const COMMENT: u8 = 16;

/// Why bytes cannot be unfolded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GzipError {
    /// Not the header that the format has.
    #[error("its gzip header is broken")]
    Header,
    /// The data end before they should, or are no deflated data.
    #[error("its gzip data are broken or cut off")]
    Data,
    /// Length or checksum are others than the trailer says.
    #[error("its gzip checksum does not fit")]
    Checksum,
    /// More than [`LARGEST`] bytes.
    #[error(
        "it unfolds to more than {} MiB; expected a smaller text, or one split into several services",
        LARGEST / 1024 / 1024
    )]
    TooLarge,
}

/// Whether bytes look compressed.
#[must_use]
pub fn is_gzip(bytes: &[u8]) -> bool {
    bytes.starts_with(&MAGIC)
}

/// Compresses. The same bytes give the same result: no time or name is put in.
#[must_use]
pub fn compress(bytes: &[u8]) -> Vec<u8> {
    // No flags, no time, default effort, unknown system.
    let mut out = vec![MAGIC[0], MAGIC[1], DEFLATE, 0, 0, 0, 0, 0, 0, 255];
    out.extend(compress_to_vec(bytes, LEVEL));
    out.extend(crc32fast::hash(bytes).to_le_bytes());
    out.extend(length(bytes).to_le_bytes());
    out
}

/// Unfolds all members of a gzip file, one after the other.
///
/// # Errors
/// Where the bytes are not wholly of this format, or unfold to more than [`LARGEST`] bytes.
pub fn decompress(bytes: &[u8]) -> Result<Vec<u8>, GzipError> {
    decompress_within(bytes, LARGEST)
}

/// The same, with another most.
///
/// # Errors
/// Where the bytes are not wholly of this format, or unfold to more than `most` bytes.
pub fn decompress_within(bytes: &[u8], most: usize) -> Result<Vec<u8>, GzipError> {
    let mut out = Vec::new();
    let mut rest = bytes;
    loop {
        rest = member(rest, &mut out, most)?;
        if rest.is_empty() {
            return Ok(out);
        }
    }
}

/// Unfolds one member; gives back what follows it.
fn member<'a>(bytes: &'a [u8], out: &mut Vec<u8>, most: usize) -> Result<&'a [u8], GzipError> {
    let mut rest = header(bytes).ok_or(GzipError::Header)?;
    let begin = out.len();
    let mut state = InflateState::new_boxed(DataFormat::Raw);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let step = inflate(&mut state, rest, &mut buffer, MZFlush::None);
        rest = rest.get(step.bytes_consumed..).ok_or(GzipError::Data)?;
        if out.len() + step.bytes_written > most {
            return Err(GzipError::TooLarge);
        }
        out.extend(buffer.get(..step.bytes_written).unwrap_or_default());
        match step.status {
            Ok(MZStatus::StreamEnd) => break,
            Ok(_) if step.bytes_consumed > 0 || step.bytes_written > 0 => {}
            _ => return Err(GzipError::Data),
        }
    }
    let (crc, rest) = rest.split_first_chunk().ok_or(GzipError::Data)?;
    let (size, rest) = rest.split_first_chunk().ok_or(GzipError::Data)?;
    let unfolded = out.get(begin..).unwrap_or_default();
    if u32::from_le_bytes(*crc) != crc32fast::hash(unfolded)
        || u32::from_le_bytes(*size) != length(unfolded)
    {
        return Err(GzipError::Checksum);
    }
    Ok(rest)
}

/// What follows a header; none: there is no header.
fn header(bytes: &[u8]) -> Option<&[u8]> {
    let (fixed, mut rest) = bytes.split_first_chunk::<10>()?;
    let [first, second, method, flags, ..] = *fixed;
    if [first, second] != MAGIC || method != DEFLATE {
        return None;
    }
    if flags & EXTRA != 0 {
        let (size, after) = rest.split_first_chunk()?;
        rest = after.get(usize::from(u16::from_le_bytes(*size))..)?;
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            let end = rest.iter().position(|byte| *byte == 0)?;
            rest = rest.get(end + 1..)?;
        }
    }
    if flags & HEADER_CRC != 0 {
        rest = rest.get(2..)?;
    }
    Some(rest)
}

/// The length as the trailer has it: its lowest 32 bits.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the format has the length modulo 2^32"
)]
fn length(bytes: &[u8]) -> u32 {
    bytes.len() as u32
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_compressed_comes_back(parts in proptest::collection::vec(any::<Vec<u8>>(), 1..4)) {
            let packed: Vec<u8> = parts.iter().flat_map(|part| compress(part)).collect();
            prop_assert_eq!(decompress(&packed), Ok(parts.concat()));
        }

        #[test]
        fn nothing_makes_it_panic(bytes: Vec<u8>, flags: u8) {
            let mut gzip = vec![MAGIC[0], MAGIC[1], DEFLATE, flags];
            gzip.extend(bytes);
            let _ = decompress(&gzip);
        }
    }

    #[test]
    fn any_changed_byte_is_noticed() {
        let text = b"the same bytes give the same result";
        let packed = compress(text);
        for place in 10..packed.len() {
            let mut broken = packed.clone();
            broken[place] ^= 0x10;
            // A bit between the end of the data and the checksum has no meaning.
            let harmless = decompress(&broken).is_ok_and(|it| it == text);
            assert!(harmless || decompress(&broken).is_err(), "byte {place}");
            assert!(decompress(&packed[..place]).is_err(), "cut at {place}");
        }
    }

    #[test]
    fn a_bomb_is_put_aside() {
        let packed = compress(&vec![0; LARGEST + 1]);
        assert!(packed.len() < 100_000);
        assert_eq!(decompress(&packed), Err(GzipError::TooLarge));
        assert!(decompress(&compress(&vec![0; LARGEST])).is_ok());
    }

    #[test]
    fn thirty_kilobytes_that_unfold_to_32_mib_are_refused() {
        let packed = compress(&vec![b' '; 32 * 1024 * 1024]);
        assert!(packed.len() < 40_000, "{}", packed.len());
        assert_eq!(decompress(&packed), Err(GzipError::TooLarge));
        assert_eq!(
            decompress_within(&compress(b"text"), 3),
            Err(GzipError::TooLarge)
        );
        assert!(decompress_within(&compress(b"text"), 4).is_ok());
    }

    #[test]
    fn a_header_may_have_all_its_parts() {
        let packed = compress(b"text");
        let mut full = vec![
            MAGIC[0],
            MAGIC[1],
            DEFLATE,
            EXTRA | NAME | COMMENT | HEADER_CRC,
        ];
        full.extend([0; 6]);
        full.extend(b"\x03\x00abcname\0comment\0\x01\x02");
        full.extend(&packed[10..]);
        assert_eq!(decompress(&full), Ok(b"text".to_vec()));
    }

    #[test]
    fn the_gzip_program_agrees() {
        let text = "0123456789 apscli\n".repeat(10_000);
        let run = |flag: &str, input: &[u8]| {
            let mut child = Command::new("gzip")
                .arg(flag)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("gzip is installed");
            let mut stdin = child.stdin.take().unwrap();
            let input = input.to_vec();
            let writer = std::thread::spawn(move || stdin.write_all(&input).unwrap());
            let out = child.wait_with_output().unwrap();
            writer.join().unwrap();
            assert!(out.status.success());
            out.stdout
        };
        let theirs = run("-c", text.as_bytes());
        assert_eq!(decompress(&theirs), Ok(text.clone().into_bytes()));
        assert_eq!(run("-dc", &compress(text.as_bytes())), text.into_bytes());
    }
}
