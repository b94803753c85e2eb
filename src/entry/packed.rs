//! Compressed values: a JSON string, the base64 (RFC 4648, with padding) of a zstd frame (RFC 8878) that tells its content's
//! size. So an entry is JSON all the same, and everybody who has the two can read it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zstd::zstd_safe::get_frame_content_size;

/// zstd's own default: a quarter of the size for typical JSON, at hundreds of megabytes a second.
const LEVEL: i32 = 3;

/// Compresses a value's JSON; `None` where that does not make it smaller.
pub fn pack(value: &[u8]) -> Option<Vec<u8>> {
    // One that cannot be compressed is stored as it is.
    let frame = zstd::bulk::compress(value, LEVEL).ok()?;
    let length = base64::encoded_len(frame.len(), true)?.checked_add(2)?;
    if length >= value.len() {
        return None;
    }
    let mut packed = vec![b'"'; length];
    STANDARD.encode_slice(&frame, &mut packed[1..length - 1]).ok()?;
    Some(packed)
}

/// Reads back what [`pack`] wrote; `None` for anything else, and for what is larger than `max` bytes: more memory than that
/// is never asked for, whatever stands there.
pub fn unpack(packed: &[u8], max: usize) -> Option<Vec<u8>> {
    let frame = STANDARD.decode(packed.strip_prefix(b"\"")?.strip_suffix(b"\"")?).ok()?;
    let size = usize::try_from(get_frame_content_size(&frame).ok()??).ok().filter(|size| *size <= max)?;
    let value = zstd::bulk::decompress(&frame, size).ok()?;
    (value.len() == size).then_some(value)
}

/// An entry's text with its value compressed, where the value is larger than `above` bytes and that makes it smaller.
pub fn pack_text(text: &[u8], above: usize) -> Option<Vec<u8>> {
    let value = text.get(super::HEAD..text.len().checked_sub(1)?).filter(|value| value.len() > above)?;
    let packed = pack(value)?;
    let mut whole = Vec::with_capacity(super::HEAD + packed.len() + 1);
    whole.extend_from_slice(&text[..super::HEAD]);
    whole[super::PACKED] = b'1';
    whole.extend_from_slice(&packed);
    whole.push(b'}');
    Some(whole)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use bytes::Bytes;

    use super::*;
    use crate::entry::{self, Due, Label, Stored};
    use crate::lsn::Lsn;

    fn rows(count: usize) -> Vec<u8> {
        let row = |n| format!(r#"{{"id":{n},"status":"shipped","total":{}.{:02},"note":"order {n}"}}"#, n * 7, n % 100);
        format!("[{}]", (0..count).map(row).collect::<Vec<_>>().join(",")).into_bytes()
    }

    fn label() -> Label {
        let (lo, hi) = (Lsn::from_u64(1), Lsn::from_u64(2));
        Label { lo, hi, generation: crate::generation::Generation(3), split: true, due: Due::from_millis(5) }
    }

    #[test]
    fn a_compressed_entry_is_json_and_reads_back() {
        let value = rows(1000);
        let text = entry::encode(&label(), Some(&value));
        let packed = pack_text(&text, 1000).unwrap();
        assert!(packed.len() < text.len() / 4, "{} of {}", packed.len(), text.len());
        let json: serde_json::Value = serde_json::from_slice(&packed).unwrap();
        assert_eq!((&json["z"], &json["s"], &json["x"]), (&1.into(), &1.into(), &"0000000000005".into()));
        assert_eq!(entry::decode(packed.into(), value.len()), Stored::Entry(label(), Some(value.into())));
    }

    #[test]
    fn small_and_random_values_stay_as_they_are() {
        let text = |value: &[u8]| entry::encode(&label(), Some(value));
        assert_eq!(pack_text(&text(&rows(10)), 1 << 20), None);
        assert_eq!(pack_text(&text(b"{\"a\":1}"), 1), None);
        let random: String = (0..10_000).map(|_| char::from(rand::random_range(b'#'..b'['))).collect();
        assert_eq!(pack_text(&text(format!("\"{random}\"").as_bytes()), 1).filter(|p| p.len() >= 10_110), None);
        assert_eq!(pack_text(b"", 0), None);
    }

    #[test]
    fn what_is_damaged_or_a_bomb_is_foreign() {
        let bomb = vec![b' '; 64 << 20];
        let packed = pack(&bomb).unwrap();
        assert!(packed.len() < 64 << 10);
        assert_eq!(unpack(&packed, (64 << 20) - 1), None);
        let whole = pack_text(&entry::encode(&label(), Some(&rows(100))), 10).unwrap();
        for cut in entry::HEAD..whole.len() - 1 {
            let cut = [&whole[..cut], b"}"].concat();
            assert!(matches!(entry::decode(cut.into(), 1 << 20), Stored::Foreign));
        }
        for at in entry::HEAD..whole.len() - 1 {
            let mut damaged = whole.clone();
            damaged[at] = b'!';
            assert!(matches!(entry::decode(damaged.into(), 1 << 20), Stored::Foreign), "at {at}");
        }
        // A frame that lies about its size, and one that does not tell it.
        let frame = zstd::bulk::compress(&rows(100), LEVEL).unwrap();
        let lie = zstd::bulk::compress(&rows(101), LEVEL).unwrap();
        let mixed = [&lie[..lie.len().min(8)], &frame[8.min(frame.len())..]].concat();
        for frame in [mixed, zstd::stream::encode_all(&rows(100)[..], LEVEL).unwrap(), Vec::new()] {
            let text = format!("\"{}\"", STANDARD.encode(frame));
            assert_eq!(unpack(text.as_bytes(), 1 << 20), None);
        }
        assert_eq!(unpack(b"\"", 10), None);
        let _: Bytes = whole.into();
    }

    /// Not run by default: it measures. `cargo test --lib packed::tests::cost -- --ignored --nocapture`
    #[test]
    #[ignore = "it measures"]
    fn cost() {
        for count in [50, 500, 5000, 50_000] {
            let value = rows(count);
            let times = (20_000 / count).max(3);
            let begin = Instant::now();
            let mut packed = Vec::new();
            for _ in 0..times {
                packed = pack(&value).unwrap();
            }
            let packing = begin.elapsed() / times as u32;
            let begin = Instant::now();
            for _ in 0..times {
                unpack(&packed, value.len()).unwrap();
            }
            let unpacking = begin.elapsed() / times as u32;
            println!("{} bytes to {}: {packing:?}, and back {unpacking:?}", value.len(), packed.len());
        }
    }
}
