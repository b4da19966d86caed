//! Takes pieces out of a text as long as it stays what it is.

use crate::pieces;

/// The smallest text found that is still `wanted`.
pub(crate) fn minimize(text: &str, wanted: impl Fn(&str) -> bool) -> String {
    let mut pieces = pieces::cut(text);
    // Pieces joined by blanks may be another text.
    if !wanted(&pieces.join(" ")) {
        return text.to_owned();
    }
    let mut size = pieces.len().div_ceil(2);
    loop {
        let mut at = 0;
        let mut smaller = false;
        while at < pieces.len() {
            let mut without = pieces.clone();
            without.drain(at..(at + size).min(pieces.len()));
            if wanted(&without.join(" ")) {
                pieces = without;
                smaller = true;
            } else {
                at += 1;
            }
        }
        if size == 1 && !smaller {
            return pieces.join(" ");
        }
        size = (size / 2).max(1);
    }
}
