//! A container with a terminal: one stream, logged as stdout.

use crate::with_shims;

#[test]
fn a_terminals_output_is_logged_as_stdout() {
    with_shims(|shim, client| {
        let script = "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo terminal; echo err >&2; exit 6";
        let bundle = shim.bundle("c", script, |c| c["process"]["terminal"] = true.into());
        let mut create = bundle.create();
        create.terminal = true;
        client.create(create);
        client.start(&bundle.id);
        assert_eq!(client.exit(&bundle.id).code, 6);
        client.delete(&bundle.id).expect("delete");
        // The terminal itself turns line feeds into CR LF.
        assert_eq!(bundle.output("stdout"), b"terminal\r\nerr\r\n");
        assert_eq!(bundle.output("stderr"), b"");
        assert_eq!(bundle.extra_files(), [] as [String; 0]);
    });
}
