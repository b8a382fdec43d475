//! The words that a source says, with the place of each.
//!
//! Called by `words`. It tells literals from comments and tests from code by itself, since it must be sure of nothing else: no
//! macro is expanded, no type is known.

/// A literal right behind one of these is a word.
const SAID_BY: &[&str] = &[
    "result:",
    "label:",
    ".close(",
    "Refusal::us(",
    "Refusal::control_plane(",
    "refuse(",
    "refused(",
    "refusal(",
    "over(",
    "lost(",
    "denial(",
    "shed(",
    ".pool_take(",
    ".lookup(",
    ".controller_attempt(",
    ".policy_update(",
];

/// A word and where it is said.
#[derive(Debug, PartialEq, Eq)]
pub struct Word {
    /// Itself.
    pub text: String,
    /// From 1.
    pub line: usize,
    /// Said in a place where every literal is a word.
    pub known: bool,
}

/// Whether it is spelled as a word is.
pub fn is_word(text: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    text.starts_with(|c: char| c.is_ascii_lowercase()) && text.split('_').all(part)
}

/// The words of a source, tests left out.
pub fn words(text: &str) -> Vec<Word> {
    let (code, literals) = without_literals(text);
    let tests = items_behind(&code, "#[cfg(test)]");
    let labels = label_bodies(&code);
    let within = |spans: &[(usize, usize)], at: usize| spans.iter().any(|(from, to)| (*from..*to).contains(&at));
    let mut words = Vec::new();
    for (at, literal) in literals.into_iter().filter(|(at, literal)| is_word(literal) && !within(&tests, *at)) {
        let before = code[..at].trim_end();
        let known = within(&labels, at) || SAID_BY.iter().any(|place| before.ends_with(place));
        words.push(Word { text: literal, line: text[..at].matches('\n').count() + 1, known });
    }
    words
}

/// The text with comments and the content of literals blanked, byte by byte; and each string literal with its place.
fn without_literals(text: &str) -> (String, Vec<(usize, String)>) {
    let bytes = text.as_bytes();
    let mut code = bytes.to_vec();
    let mut literals = Vec::new();
    let mut at = 0;
    let blank = |code: &mut Vec<u8>, from: usize, to: usize| {
        code[from..to].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
    };
    while at < bytes.len() {
        let rest = &text.as_bytes()[at..];
        let length = match rest {
            [b'/', b'/', ..] => rest.iter().position(|byte| *byte == b'\n').unwrap_or(rest.len()),
            [b'\'', b'\\', _, ..] => 3 + rest[3..].iter().position(|byte| *byte == b'\'').unwrap_or(0) + 1,
            [b'\'', other, b'\'', ..] if *other != b'\'' => 3,
            [b'r', b'"' | b'#', ..] if raw_string(rest).is_some() => raw_string(rest).unwrap_or(1),
            [b'"', ..] => {
                let end = string_end(rest);
                literals.push((at, String::from_utf8_lossy(&rest[1..end]).into_owned()));
                end + 1
            }
            _ => {
                at += 1;
                continue;
            }
        };
        let end = (at + length).min(bytes.len());
        blank(&mut code, at, end);
        at = end;
    }
    (String::from_utf8_lossy(&code).into_owned(), literals)
}

/// Where a string's closing quote is.
fn string_end(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != b'"' {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    at.min(rest.len())
}

/// Length of `r"..."` or `r#"..."#`, if it is one.
fn raw_string(rest: &[u8]) -> Option<usize> {
    let hashes = rest[1..].iter().take_while(|byte| **byte == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return None;
    }
    let close = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
    let body = &rest[hashes + 2..];
    Some(hashes + 2 + body.windows(close.len()).position(|window| window == close)? + close.len())
}

/// The items that follow `mark`: up to their `;`, or to the end of their braces.
fn items_behind(code: &str, mark: &str) -> Vec<(usize, usize)> {
    let starts = code.match_indices(mark).map(|(at, _)| at);
    starts.map(|at| (at, at + item_length(&code[at..]))).collect()
}

/// Bodies of functions called `label` or `..._label` that give a fixed text.
fn label_bodies(code: &str) -> Vec<(usize, usize)> {
    let starts = code.match_indices("label(").map(|(at, _)| at).filter(|at| {
        let name = code[..*at].rfind(|c: char| !c.is_ascii_alphanumeric() && c != '_').map_or(0, |end| end + 1);
        let head = code[*at..].split('{').next().unwrap_or_default();
        let named = name == *at || code[name..*at].ends_with('_');
        named && code[..name].ends_with("fn ") && head.contains("-> &'static str")
    });
    starts.map(|at| (at, at + item_length(&code[at..]))).collect()
}

fn item_length(code: &str) -> usize {
    let mut depth = 0;
    for (at, byte) in code.bytes().enumerate() {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' => depth -= 1,
            _ => {}
        }
        if depth <= 0 && matches!(byte, b'}' | b';') {
            return at + 1;
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(text: &str) -> Vec<String> {
        words(text).into_iter().filter(|word| word.known).map(|word| word.text).collect()
    }

    #[test]
    fn words_of_labels_and_of_known_places_are_found() {
        let text = r#"
//! "not_me" in a comment
#[cfg(test)]
mod tests;
const AN: &str = "other";
impl E {
    /// fn label() "not_me_either"
    pub fn label(&self) -> &'static str {
        match self { Self::A { .. } => "a_word", Self::B('}') => "b_word", _ => "with space" }
    }
}
fn code_label(c: u8) -> &'static str { "c_word" }
fn relabel(&self, to: &str) -> Arc<str> { "d_word".into() }
fn go(account: Account) {
    account.close(
        "e_word", // why
        "text",
    );
    Refusal { result: "f_word", detail: r"result: ".into() }
}
#[cfg(test)]
mod more { fn label() -> &'static str { "g_word" } }
fn label_of() -> &'static str { "h_word" }
"#;
        assert_eq!(known(text), ["a_word", "b_word", "c_word", "e_word", "f_word"]);
        assert!(words(text).iter().any(|word| word.text == "other" && !word.known));
    }
}
