//! Archives as they come, and as they should not.

use std::io::Write as _;

use super::*;

fn header(kind: EntryType, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(size);
    header
}

fn with(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    build(&mut builder);
    builder.into_inner().unwrap()
}

fn put(builder: &mut tar::Builder<Vec<u8>>, name: &str, content: &[u8]) {
    let mut header = header(EntryType::Regular, content.len() as u64);
    builder.append_data(&mut header, name, content).unwrap();
}

fn open(content: &[u8]) -> Result<Archive, PullError> {
    let dir = tempfile::tempdir().unwrap();
    let (sender, receiver) = mpsc::channel(content.len() / 5 + 1);
    for piece in content.chunks(5) {
        sender.try_send(Ok(Bytes::copy_from_slice(piece))).unwrap();
    }
    drop(sender);
    let opened = Archive::open(ArchiveSource::Pieces(receiver), dir.path());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "no file has a name");
    opened
}

fn gzip(content: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(content).unwrap();
    gzip.finish().unwrap()
}

#[test]
fn parts_are_found_by_name_however_they_are_packed() {
    let long = format!("{}/layer.tar", "d".repeat(150));
    let tar = with(|builder| {
        put(builder, "./a/layer.tar", b"one");
        put(builder, &long, b"two");
        let mut link = header(EntryType::Symlink, 0);
        builder.append_link(&mut link, "b/layer.tar", "../a/layer.tar").unwrap();
    });
    for content in [&tar, &gzip(&tar)] {
        let archive = open(content).unwrap();
        assert_eq!(archive.read("a/layer.tar", 3).unwrap(), b"one");
        assert_eq!(archive.read("b/layer.tar", 3).unwrap(), b"one");
        assert_eq!(archive.read(&long, 3).unwrap(), b"two");
        assert!(archive.has("a//./layer.tar") && !archive.has("a") && !archive.has("../a/layer.tar"));
        let error = archive.read("a/layer.tar", 2).unwrap_err().to_string();
        assert!(error.contains("3 bytes, at most 2"), "{error}");
    }
}

#[test]
fn what_is_no_archive_of_ours_is_refused() {
    let twice = with(|builder| {
        put(builder, "a", b"1");
        put(builder, "./a", b"2");
    });
    let huge_header = with(|builder| {
        let value = vec![b'x'; 70 << 10];
        builder.append_pax_extensions([("comment", value.as_slice())]).unwrap();
    });
    let pax_size = with(|builder| {
        builder.append_pax_extensions([("size", b"5".as_slice())]).unwrap();
        put(builder, "a", b"1");
    });
    let mut short = with(|builder| put(builder, "a", &[0; 5000]));
    short.truncate(2000);
    let looping = with(|builder| {
        for (from, to) in [("a", "b"), ("b", "a")] {
            builder.append_link(&mut header(EntryType::Link, 0), from, to).unwrap();
        }
    });
    let mut cut = gzip(&vec![7; 100_000]);
    cut.truncate(50);
    let table = [
        (twice, "is in it twice"),
        (huge_header, "a header of"),
        (pax_size, "size in a PAX record"),
        (short, "ends inside an entry"),
        (b"\x28\xb5\x2f\xfd....".to_vec(), "archive: "),
        (b"\xfd7zXZ\0......".to_vec(), "packed with xz"),
        (cut, "archive: "),
        (vec![b'x'; 2000], "archive: "),
    ];
    for (content, says) in table {
        let error = open(&content).expect_err(says).to_string();
        assert!(error.contains(says), "{error} should say {says}");
    }
    let error = open(&looping).unwrap().read("a", 1).unwrap_err().to_string();
    assert!(error.contains("it has no file"), "{error}");
    assert!(open(b"").unwrap().items.is_empty());
}

#[test]
fn a_source_that_breaks_off_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let (sender, receiver) = mpsc::channel(2);
    sender.try_send(Ok(Bytes::from_static(&[0; 2000]))).unwrap();
    sender.try_send(Err(PullError::broken_off("gone"))).unwrap();
    let error = Archive::open(ArchiveSource::Pieces(receiver), dir.path()).unwrap_err();
    assert!(error.to_string().contains("gone"), "{error}");
}
