//! Users and groups: a number is a number if it fits, anything else is an error, and nothing is ever looked up by name.

use std::fs;

use corten_tests::bundle::{Bundle, Report, Runtime};
use serde_json::{Value, json};

tests! {
    exec_takes_a_user_as_numbers_alone,
    exec_takes_additional_groups_as_numbers_alone,
    the_document_s_users_are_32_bit_numbers,
    a_home_directory_is_that_of_the_number,
}

/// Accounts that are called like numbers, and are root: whoever looks a number up by name becomes root.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh
1:x:0:0::/root:/bin/sh
1000:x:0:0::/root:/bin/sh
2147483648:x:0:0::/root:/bin/sh
4294967295:x:0:0::/root:/bin/sh
4294967296:x:0:0::/root:/bin/sh
18446744073709551616:x:0:0::/root:/bin/sh
00:x:7:7::/seven:/bin/sh
0x0:x:0:0::/root:/bin/sh
+0:x:0:0::/root:/bin/sh
:x:0:0::/root:/bin/sh
";

const NOT_IDS: [&str; 19] = [
    "+0",
    "-0",
    "-1",
    "+1",
    "1x",
    "0x0",
    " 0",
    "0 ",
    "4294967295",
    "4294967296",
    "18446744073709551616",
    "",
    ":",
    "root",
    "root\n",
    "0\n",
    "1.0",
    "1e1",
    "０",
];

fn running(runtime: &Runtime) -> Bundle<'_> {
    let mut bundle = runtime.bundle();
    fs::write(bundle.rootfs("etc/passwd"), PASSWD).expect("write a file of the image");
    fs::write(bundle.rootfs("etc/group"), "1:x:0:\n4294967296:x:0:\nroot:x:0:\n").expect("write a file of the image");
    bundle.probe(&["sleep"]);
    bundle
}

/// CVE-2016-3697, CVE-2026-30892, CVE-2024-40635, CVE-2026-46680.
fn exec_takes_a_user_as_numbers_alone(runtime: &Runtime) {
    let bundle = running(runtime);
    let _container = bundle.start();
    for (text, uid, gid) in [
        ("0", "0", "0"),
        ("00", "0", "0"),
        ("1", "1", "0"),
        ("1000", "1000", "0"),
        ("0001000:5", "1000", "5"),
        ("2147483647", "2147483647", "0"),
        ("2147483648", "2147483648", "0"),
        ("4294967294:4294967294", "4294967294", "4294967294"),
    ] {
        let report = bundle.exec_report(&["--user", text]);
        let four = |id: &str| [id; 4].join(" ");
        assert_eq!(
            (report.status("Uid"), report.status("Gid")),
            (&*four(uid), &*four(gid)),
            "{text}"
        );
    }
    let groups = NOT_IDS.iter().map(|text| format!("1000:{text}"));
    for text in NOT_IDS
        .iter()
        .map(|&text| text.to_owned())
        .chain(groups)
        .chain(["1:2:3".to_owned()])
    {
        let output = bundle.exec(&["--user", &text], &["/probe", "report"]);
        assert_eq!(output.stdout, "", "{text:?}: a program has run");
        let error = output.failure();
        assert!(
            error.contains("user") && error.contains("4294967294"),
            "{text:?}: {error}"
        );
    }
}

fn exec_takes_additional_groups_as_numbers_alone(runtime: &Runtime) {
    let bundle = running(runtime);
    let _container = bundle.start();
    let report = bundle.exec_report(&["--additional-gids", "1", "--additional-gids", "4294967294"]);
    assert_eq!(report.status("Groups"), "1 4294967294");
    for text in NOT_IDS {
        let output = bundle.exec(&["--additional-gids", text], &["/probe", "report"]);
        assert_eq!(output.stdout, "", "{text:?}: a program has run");
        let _error = output.failure();
    }
}

fn the_document_s_users_are_32_bit_numbers(runtime: &Runtime) {
    let wrong = [
        "\"0\"",
        "\"root\"",
        "-1",
        "-0.0",
        "0.5",
        "1e3",
        "4294967295",
        "4294967296",
        "18446744073709551616",
        "[0]",
        "{}",
        "true",
    ];
    for field in ["uid", "gid", "additionalGids"] {
        for text in wrong {
            let mut bundle = running(runtime);
            let value: Value = serde_json::from_str(text).expect("the row is JSON");
            bundle.spec["process"]["user"][field] = if field == "additionalGids" {
                json!([value])
            } else {
                value
            };
            let error = bundle.run().failure();
            assert!(error.contains("process.user"), "{field}: {text}: {error}");
            bundle.assert_nothing_left();
        }
    }
    let mut bundle = running(runtime);
    bundle.spec["process"]["user"] =
        json!({ "uid": 4_294_967_294_u32, "gid": 2_147_483_648_u32, "additionalGids": [1] });
    let report = bundle.report(&[]);
    assert_eq!(
        report.status("Uid"),
        [u32::MAX - 1; 4].map(|id| id.to_string()).join(" ")
    );
    assert_eq!(report.status("Groups"), "1");
}

/// CVE-2022-4318, CVE-2026-15809: the file is read, by number, and never written.
fn a_home_directory_is_that_of_the_number(runtime: &Runtime) {
    let bundle = running(runtime);
    let _container = bundle.start();
    for (user, home) in [("7", "/seven"), ("0", "/root"), ("1", "/"), ("4294967294", "/")] {
        let report = bundle.exec_report(&["--user", user]);
        assert!(home_of(&report) == Some(home), "{user}: {}", report["env"]);
    }
    for home in ["/x\nroot2:x:0:0::/:/bin/sh", "/x\\nroot2:x:0:0::/:/bin/sh", "a:b", "\t"] {
        let report = bundle.exec_report(&["--env", &format!("HOME={home}")]);
        assert_eq!(home_of(&report), Some(home));
    }
    assert_eq!(
        fs::read_to_string(bundle.rootfs("etc/passwd")).expect("read a file of the image"),
        PASSWD
    );
}

fn home_of(report: &Report) -> Option<&str> {
    let env = report["env"].as_array().expect("the environment is a list").iter();
    env.filter_map(Value::as_str)
        .find_map(|entry| entry.strip_prefix("HOME="))
}
