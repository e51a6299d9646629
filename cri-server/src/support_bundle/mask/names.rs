//! Which names are those of secrets.

/// Parts of names of secrets, without `-`, `_` and `.`.
const SECRET: [&str; 14] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "credential",
    "authorization",
    "apikey",
    "privatekey",
    "accesskey",
    "cookie",
    "lastappliedconfiguration",
    "bearer",
    "keydata",
];
/// Last words of names of secrets: `MYSQL_PWD`, `--db-pass`, `encryptionKey`.
const SECRET_NAMES: [&str; 4] = ["auth", "pwd", "pass", "key"];
/// Names that sound like secrets and are files or settings of ours.
const HARMLESS: [&str; 2] = ["authfile", "credentialhelperdirs"];

/// Whether what has this name is a secret.
pub(super) fn is_secret(name: &str) -> bool {
    let whole = plain(name);
    let sounds = SECRET.iter().any(|part| whole.contains(part)) || SECRET_NAMES.contains(&last_word(name).as_str());
    sounds && !HARMLESS.contains(&whole.as_str())
}

/// Letters and digits, in lower case.
pub(super) fn plain(name: &str) -> String {
    let kept = name.chars().filter(char::is_ascii_alphanumeric);
    kept.map(|c| c.to_ascii_lowercase()).collect()
}

/// The last word of a name, as separators or capitals divide it.
fn last_word(name: &str) -> String {
    let name = name.trim_end_matches(|c: char| !c.is_ascii_alphanumeric());
    let word = name.rsplit(|c: char| !c.is_ascii_alphanumeric()).next();
    let word = word.unwrap_or_default();
    let is_mixed = word.contains(|c: char| c.is_ascii_lowercase());
    let capital = word.rfind(|c: char| c.is_ascii_uppercase()).filter(|_| is_mixed);
    word[capital.unwrap_or(0)..].to_ascii_lowercase()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let table = [
            ("DB_PASSWORD", true),
            ("MYSQL_PWD", true),
            ("DB_PASS", true),
            ("--db-pass", true),
            ("ENCRYPTION_KEY", true),
            ("encryptionKey", true),
            ("X-Registry-Auth", true),
            ("Authorization:", true),
            ("auth", true),
            ("auth_file", false),
            ("PWDX", false),
            ("compass", false),
            ("author", false),
            ("monkey", false),
            ("", false),
        ];
        for (name, expected) in table {
            assert_eq!(is_secret(name), expected, "{name}");
        }
    }
}
