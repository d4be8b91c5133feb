//! The shape of a peer's message, before the parser sees it. That parser skips unknown groups by recursion without a
//! bound (RUSTSEC-2024-0437), so anything but numbers and byte strings is refused here, at every level.

/// Fields that hold messages, for each kind of message: `(field, kind within)`.
type Kind = &'static [(u64, usize)];

const MESSAGE: usize = 0;
/// `Message` (entries, snapshot), `Entry`, `Snapshot` (metadata), `SnapshotMetadata` (conf_state), `ConfState`.
const KINDS: [Kind; 5] = [&[(7, 1), (9, 2)], &[], &[(2, 3)], &[(1, 4)], &[]];

/// Some if the bytes are well-formed as far as the parser depends on it.
pub(super) fn check(bytes: &[u8]) -> Option<()> {
    fields(bytes, MESSAGE)
}

fn fields(mut bytes: &[u8], kind: usize) -> Option<()> {
    while !bytes.is_empty() {
        let (tag, rest) = number(bytes)?;
        let (value, rest) = number(rest)?;
        bytes = rest;
        match tag & 7 {
            0 => {}
            2 => {
                let (content, rest) = bytes.split_at_checked(usize::try_from(value).ok()?)?;
                bytes = rest;
                if let Some((_, within)) = KINDS[kind].iter().find(|(field, _)| *field == tag >> 3) {
                    fields(content, *within)?;
                }
            }
            _ => return None,
        }
    }
    Some(())
}

/// A base-128 number of at most ten bytes, and what follows.
fn number(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let end = bytes.iter().take(10).position(|byte| byte & 0x80 == 0)?;
    let (digits, rest) = bytes.split_at(end + 1);
    let value = digits.iter().enumerate().fold(0_u64, |value, (place, digit)| {
        value | (u64::from(digit & 0x7f)).wrapping_shl(7 * place as u32)
    });
    Some((value, rest))
}
