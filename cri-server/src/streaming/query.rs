//! The query of a port-forward's URL. Pure.

/// The ports that `port=N` or `port=N,N` name.
pub(super) fn ports(query: &str) -> Result<Vec<u16>, String> {
    let values = query.split('&').filter_map(|pair| pair.strip_prefix("port="));
    let ports = values.flat_map(|value| value.split([',']));
    ports
        .map(|text| match text.parse() {
            Ok(port) if port != 0 => Ok(port),
            _ => Err(format!("port {text:?} in the URL's query: must be 1 to 65535")),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries() {
        let table: [(&str, Result<Vec<u16>, &str>); 7] = [
            ("", Ok(vec![])),
            ("command=x", Ok(vec![])),
            ("port=80", Ok(vec![80])),
            ("port=80&x=1&port=8080", Ok(vec![80, 8080])),
            ("port=80,81", Ok(vec![80, 81])),
            ("port=", Err(r#"port "" in the URL's query: must be 1 to 65535"#)),
            (
                "port=80&port=0",
                Err(r#"port "0" in the URL's query: must be 1 to 65535"#),
            ),
        ];
        for (query, expected) in table {
            assert_eq!(ports(query), expected.map_err(str::to_owned), "{query}");
        }
    }
}
