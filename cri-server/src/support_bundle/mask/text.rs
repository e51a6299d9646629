//! What takes secrets out of texts: lines of logs, of the kernel, of programs.
//!
//! A line is read word by word. What a word says of the next one is [`Next`]; a value ends where the quote that opened it is
//! closed, and without one at the next space.

use super::MASK;
use super::names::is_secret;

/// Names of headers that have secrets to the end of their line.
const HEADERS: [&str; 3] = ["authorization", "cookie", "registry-auth"];
/// What stands for user and password ends before one of these.
const AFTER_HOST: &str = "/\"'`<>";

/// Masks a text: words in it that are secrets by what is before them, or by their form.
pub(in crate::support_bundle) fn text(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    let mut is_key = false;
    for line in text.split_inclusive('\n') {
        if line.contains("-----BEGIN") && line.contains("PRIVATE KEY") {
            is_key = true;
            result += "*** a private key\n";
        }
        if !is_key {
            result += &one_line(line);
        }
        if line.contains("-----END") {
            is_key = false;
        }
    }
    result
}

fn one_line(line: &str) -> String {
    let line = without_logins(line);
    let Some(end) = header_end(&line) else {
        return words(&line);
    };
    let rest = line[end..].trim_end_matches('\n');
    let kept = words(&line[..end]);
    match rest.trim().is_empty() {
        true => kept + &line[end..],
        false => format!("{kept} {MASK}{}", &line[end + rest.len()..]),
    }
}

/// Where the value of a header begins that is secret to the end of the line.
fn header_end(line: &str) -> Option<usize> {
    let lower = line.to_ascii_lowercase();
    let ends = HEADERS.iter().flat_map(|name| {
        let places = lower.match_indices(name);
        places.filter_map(|(at, _)| {
            let end = at + name.len();
            let separator = lower[end..].find(|c: char| !c.is_whitespace() && !"\"'\\".contains(c))?;
            let is_value = lower[end + separator..].starts_with([':', '=']);
            is_value.then_some(end + separator + 1)
        })
    });
    ends.min()
}

/// `https://user:password@host` without the part before the `@`, wherever in the line.
fn without_logins(line: &str) -> String {
    let mut result = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        result += before;
        let host_end = after.find(|c: char| c.is_whitespace() || AFTER_HOST.contains(c));
        let host_end = host_end.unwrap_or(after.len());
        rest = match after[..host_end].rfind('@') {
            Some(at) => {
                result += MASK;
                &after[at..]
            }
            None => after,
        };
    }
    result + rest
}

/// What the words so far say of the next one.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Next {
    Harmless,
    /// The name of a secret was read; a colon makes the next word its value.
    Named,
    /// It is a secret.
    Secret,
}

fn words(line: &str) -> String {
    let is_delimiter = |c: char| c.is_whitespace() || "\"'`,;&?()[]{}<>\\".contains(c);
    let mut result = String::with_capacity(line.len());
    let (mut rest, mut next) = (line, Next::Harmless);
    while !rest.is_empty() {
        let start = rest.find(|c| !is_delimiter(c)).unwrap_or(rest.len());
        let (delimiters, tail) = rest.split_at(start);
        result += delimiters;
        if ["\"\"", "''"].iter().any(|nothing| delimiters.starts_with(nothing)) {
            next = Next::Harmless;
        }
        let quote = delimiters.chars().next_back().filter(|c| is_quote(*c));
        let end = tail.find(is_delimiter).unwrap_or(tail.len());
        let taken;
        (taken, next) = match tail.is_empty() {
            true => (0, next),
            false => add_word(tail, end, quote, next, &mut result),
        };
        rest = &tail[taken..];
    }
    result
}

fn is_quote(c: char) -> bool {
    "\"'`".contains(c)
}

/// The length of a value at the beginning of a text: up to the quote that closes it, or to the next space.
fn value_length(text: &str, quote: Option<char>) -> usize {
    let end = text.find(|c: char| match quote {
        Some(quote) => c == quote || c == '\n',
        None => c.is_whitespace(),
    });
    match end {
        // A quote within a quote has a backslash of its own.
        Some(end) if quote.is_some() => text[..end].trim_end_matches('\\').len(),
        Some(end) => end,
        None => text.len(),
    }
}

/// Adds the word of `end` bytes that `text` begins with, or what stands for it and all of its value. How much was taken, and
/// what it says of the next one.
fn add_word(text: &str, end: usize, quote: Option<char>, before: Next, result: &mut String) -> (usize, Next) {
    let word = &text[..end];
    let is_separator = word.chars().all(|c| c == ':' || c == '=');
    if before != Next::Harmless && is_separator {
        result.push_str(word);
        return (end, Next::Secret);
    }
    // "token: Bearer X": the secret comes after.
    if before == Next::Secret && !is_scheme(word) || word.starts_with("eyJ") {
        result.push_str(MASK);
        return (value_length(text, quote).max(1), Next::Harmless);
    }
    for (at, _) in word.match_indices(['=', ':']) {
        let is_named = is_secret(&word[..at]) || at == 0 && before == Next::Named;
        if is_named || word[at + 1..].starts_with("eyJ") {
            result.push_str(&word[..=at]);
            let length = value_length(&text[at + 1..], quote);
            if word.len() == at + 1 && is_named {
                return (end, Next::Secret);
            }
            result.push_str(MASK);
            return (at + 1 + length, Next::Harmless);
        }
    }
    result.push_str(word);
    let next = match is_secret(word) {
        _ if is_scheme(word) => Next::Secret,
        true if word.starts_with('-') => Next::Secret,
        true => Next::Named,
        false => Next::Harmless,
    };
    (end, next)
}

fn is_scheme(word: &str) -> bool {
    word.eq_ignore_ascii_case("bearer") || word == "Basic"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let table = [
            ("nothing to hide: 7\n", "nothing to hide: 7\n"),
            ("the token was refused", "the token was refused"),
            ("password=X user=a", "password=*** user=a"),
            ("password=X;Y&Z user=a", "password=*** user=a"),
            ("password = \"X Y;Z\", b", "password = \"***\", b"),
            ("password: X, b", "password: *** b"),
            ("{\"password\": \"X\"}", "{\"password\": \"***\"}"),
            ("{\"password\":\"\",\"a\":7}", "{\"password\":\"\",\"a\":7}"),
            ("{\\\"password\\\":\\\"X\\\"}", "{\\\"password\\\":\\\"***\\\"}"),
            ("{\"pin_key\":7}", "{\"pin_key\":***"),
            ("password = \"X\"", "password = \"***\""),
            ("Authorization: Bearer X", "Authorization: ***"),
            ("authorization: bearer eyJX\nb", "authorization: ***\nb"),
            ("> Set-Cookie: a=X; b=Y", "> Set-Cookie: ***"),
            ("X-Registry-Auth: X", "X-Registry-Auth: ***"),
            ("sent bearer X to it", "sent bearer *** to it"),
            ("got eyJX.eyJY.Z back", "got *** back"),
            ("jwt=eyJX.eyJY.Z back", "jwt=*** back"),
            ("MYSQL_PWD=X DB_PASS=Y", "MYSQL_PWD=*** DB_PASS=***"),
            ("run --env=DB_PASS=X", "run --env=DB_PASS=***"),
            ("curl -H Basic X", "curl -H Basic ***"),
            ("run --token X --verbose", "run --token *** --verbose"),
            ("run --db-pass X --verbose", "run --db-pass *** --verbose"),
            ("https://u:X@r.example/v2?a=b", "https://***@r.example/v2?a=b"),
            ("https://u:X;Y&Z@r.example/v2", "https://***@r.example/v2"),
            (
                "https://r.example/v2?access_token=X&a=b",
                "https://r.example/v2?access_token=***",
            ),
            (
                "a\n-----BEGIN EC PRIVATE KEY-----\nX\n-----END EC PRIVATE KEY-----\nb",
                "a\n*** a private key\nb",
            ),
        ];
        for (line, expected) in table {
            assert_eq!(text(line), expected, "{line}");
            assert_eq!(text(expected), expected, "masked twice");
        }
    }
}
