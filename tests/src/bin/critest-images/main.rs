//! `critest-images`: every image that critest pulls, under its upstream repository and tag, for `registry` to serve.
//!
//! ```text
//! critest-images --debs DIR --out DIR [--programs STAND-IN]
//! ```
//! `--debs` holds Debian packages: busybox (the dynamic one), libc6, nginx and nginx-common, apache2-bin, and what these
//! need. `--programs` is `stand-in`, beside this program unless said. Prints the digest of the image that critest pulls by
//! digest; the digest of upstream's, a constant of critest, is that of content nobody can make.
//!
//! What the images hold is what the specs look at:
//!
//! ```text
//! busybox        a shell that runs its commands as programs, which that of Debian's busybox-static does not: it would
//!                run a masked /bin/ls all the same. Commands are hard links: a mask of a symbolic link hides busybox
//! nginx, httpd   answer on port 80; the true ones, with their masters, workers and pid files
//! pause:3.9      runs by itself, without a command, as user 65535
//! test-image-*   ids, tags and users
//! ```

mod packages;
mod tree;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use corten_tests::image::{Format, Image, Saved};
use lexopt::prelude::*;
use serde_json::{Value, json};

use packages::Packages;
use tree::{Item, Tree};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Repositories of most of critest's own images, below the registry's name.
const STAGING: &str = "k8s-staging-cri-tools";

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
daemon:x:1:1:daemon:/usr/sbin:/bin/false\n\
www-data:x:33:33:www-data:/var/www:/bin/false\n\
nobody:x:65534:65534:nobody:/home:/bin/false\n";

const GROUP: &str = "root:x:0:\ndaemon:x:1:\nwww-data:x:33:\nusers:x:100:\nnogroup:x:65534:\n";

/// What images are made of, and where they go.
struct Images {
    out: PathBuf,
    packages: Packages,
    programs: Vec<u8>,
    /// The layer that nearly all begin with.
    busybox: Vec<u8>,
}

fn main() -> Result<()> {
    let (mut debs, mut out) = (None, None);
    let mut programs = std::env::current_exe()?.with_file_name("stand-in");
    let mut parser = lexopt::Parser::from_env();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("debs") => debs = Some(PathBuf::from(parser.value()?)),
            Long("out") => out = Some(PathBuf::from(parser.value()?)),
            Long("programs") => programs = parser.value()?.into(),
            other => return Err(other.unexpected().into()),
        }
    }
    let out = out.context("--out DIR is missing")?;
    let packages = Packages::read(&debs.context("--debs DIR is missing")?)?;
    let programs = fs::read(&programs).with_context(|| format!("read {}", programs.display()))?;
    fs::create_dir_all(&out).with_context(|| format!("create {}", out.display()))?;
    let busybox = busybox(&packages, &programs)?.layer().into_tar();
    let images = Images {
        out,
        packages,
        programs,
        busybox,
    };
    images.workloads()?;
    images.users()?;
    let pulled_by_digest = images.references()?;
    println!("{}", pulled_by_digest.manifest);
    Ok(())
}

impl Images {
    /// Images whose containers do something.
    fn workloads(&self) -> Result<()> {
        self.save("e2e-test-images/busybox:1.29-2", vec![], shell(), Format::Docker)?;
        let nginx = json!({ "Env": [PATH], "Cmd": ["nginx", "-g", "daemon off;"] });
        let layers = vec![nginx_base(&self.packages)?, nginx_site(80)];
        self.save("e2e-test-images/nginx:1.14-2", layers, nginx.clone(), Format::Docker)?;
        let layers = vec![nginx_base(&self.packages)?, nginx_site(12003)];
        let name = format!("{STAGING}/hostnet-nginx-amd64:latest");
        self.save(&name, layers, nginx, Format::Docker)?;
        let httpd = json!({
            "Env": [format!("PATH=/usr/local/apache2/bin:{}", &PATH["PATH=".len()..])],
            "WorkingDir": "/usr/local/apache2",
            "Cmd": ["httpd-foreground"],
            "StopSignal": "SIGWINCH",
        });
        let layers = vec![httpd_root(&self.packages)?];
        self.save("e2e-test-images/httpd:2.4.39-4", layers, httpd, Format::Docker)?;
        let setuid = Tree::default().file("nonewprivs", 0o4755, &self.programs);
        let config = json!({ "Env": [PATH], "Entrypoint": ["/nonewprivs"] });
        self.save("e2e-test-images/nonewprivs:1.3", vec![setuid], config, Format::Docker)?;
        let mut pause = Image::new().layer(Tree::default().file("pause", 0o755, &self.programs).layer());
        pause.config = json!({ "User": "65535:65535", "Env": [PATH], "Entrypoint": ["/pause"], "WorkingDir": "/" });
        pause.save(&self.out, &["pause:3.9"])?;
        Ok(())
    }

    /// Images with a user of their own.
    fn users(&self) -> Result<()> {
        let users = [
            ("uid", "1002"),
            ("username", "www-data"),
            ("uid-group", "1003:1004"),
            ("username-group", "www-data:1004"),
        ];
        for (name, user) in users {
            let mut config = shell();
            config["User"] = user.into();
            let name = format!("{STAGING}/test-image-user-{name}:latest");
            self.save(&name, vec![], config, Format::Docker)?;
        }
        let passwd = format!("{PASSWD}default-user:x:1000:1000::/home/default-user:/bin/sh\n");
        let group = format!("{GROUP}default-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n");
        let home = Item::Dir {
            mode: 0o755,
            owner: 1000,
        };
        let layer = Tree::default().text("etc/passwd", &passwd).text("etc/group", &group);
        let layer = layer.put("home/default-user", home);
        let mut config = shell();
        config["User"] = "1000".into();
        let name = format!("{STAGING}/test-image-predefined-group:latest");
        self.save(&name, vec![layer], config, Format::Docker)?;
        Ok(())
    }

    /// Images that are about ids, tags and digests; the one that is pulled by digest.
    fn references(&self) -> Result<Saved> {
        let named = |content: &str| vec![Tree::default().text(content, content)];
        for name in ["test-image-1", "test-image-2", "test-image-3", "test-image-latest"] {
            let reference = format!("{STAGING}/{name}:latest");
            self.save(&reference, named(name), shell(), Format::Docker)?;
        }
        for (tag, format) in [("test", Format::Docker), ("all", Format::Oci)] {
            let reference = format!("{STAGING}/test-image-tag:{tag}");
            self.save(&reference, named(&format!("test-image-tag-{tag}")), shell(), format)?;
        }
        for tag in 1..=3 {
            let reference = format!("{STAGING}/test-image-tags:{tag}");
            self.save(&reference, named("test-image-tags"), shell(), Format::Oci)?;
        }
        let reference = format!("{STAGING}/test-image-digest:latest");
        self.save(&reference, named("test-image-digest"), shell(), Format::Oci)
    }

    /// Saves an image of busybox with these layers on top.
    fn save(&self, name: &str, layers: Vec<Tree>, config: Value, format: Format) -> Result<Saved> {
        let mut image = Image::new().archive(self.busybox.clone());
        for layer in layers {
            image = image.layer(layer.layer());
        }
        image.config = config;
        image.format = format;
        image.save(&self.out, &[name]).with_context(|| format!("save {name}"))
    }
}

/// The configuration of an image that runs a shell.
fn shell() -> Value {
    json!({ "Env": [PATH], "Cmd": ["sh"] })
}

/// A root with a shell and its commands.
fn busybox(packages: &Packages, programs: &[u8]) -> Result<Tree> {
    let program = packages.file("bin/busybox")?;
    let mut tree = Tree::default()
        .dir("root", 0o700)
        .dir("tmp", 0o1777)
        .put_all(packages.libraries(&["ld-linux", "libc", "libm", "libresolv"])?)
        .text("etc/passwd", PASSWD)
        .text("etc/group", GROUP)
        .put("bin/busybox", program.clone());
    for dir in ["dev", "home", "proc", "sbin", "sys", "usr/bin", "usr/sbin", "var/www"] {
        tree = tree.dir(dir, 0o755);
    }
    let applets = applets(&program)?;
    for applet in applets.iter().filter(|applet| *applet != "busybox") {
        tree = tree.put(&format!("bin/{applet}"), Item::HardLink("bin/busybox".to_owned()));
    }
    for program in ["pgrep", "ipcs"] {
        if !applets.iter().any(|applet| applet == program) {
            tree = tree.file(&format!("bin/{program}"), 0o755, programs);
        }
    }
    Ok(tree)
}

/// The names of busybox's commands, as it tells them.
fn applets(busybox: &Item) -> Result<Vec<String>> {
    let Item::File { data, .. } = busybox else {
        bail!("busybox is no file");
    };
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("busybox");
    fs::write(&path, data).with_context(|| format!("write {}", path.display()))?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    let list = Command::new(&path)
        .arg("--list")
        .output()
        .context("run busybox --list")?;
    ensure!(list.status.success(), "busybox --list: {}", list.status);
    let list = String::from_utf8(list.stdout).context("names of applets")?;
    Ok(list.lines().map(str::to_owned).collect())
}

/// nginx without a site.
fn nginx_base(packages: &Packages) -> Result<Tree> {
    Ok(Tree::default()
        .put_all(packages.libraries(&["libcrypt", "libpcre2-8", "libssl", "libcrypto", "libz"])?)
        .put("usr/sbin/nginx", packages.file("usr/sbin/nginx")?)
        .put("etc/nginx/mime.types", packages.file("etc/nginx/mime.types")?)
        .text(
            "etc/passwd",
            &format!("{PASSWD}nginx:x:101:101::/nonexistent:/bin/false\n"),
        )
        .text("etc/group", &format!("{GROUP}nginx:x:101:\n"))
        .dir("run", 0o755)
        .symlink("var/run", "/run")
        .dir("var/lib/nginx", 0o755)
        .symlink("var/log/nginx/access.log", "/dev/stdout")
        .symlink("var/log/nginx/error.log", "/dev/stderr")
        .text(
            "usr/share/nginx/html/index.html",
            "<!DOCTYPE html><title>nginx</title>\n",
        )
        .text("etc/nginx/nginx.conf", NGINX)
        .text("etc/nginx/conf.d/broken.conf", "the layer above removes this;\n"))
}

/// A site on `port`; without its whiteout nginx does not start.
fn nginx_site(port: u16) -> Tree {
    let site = format!("server {{ listen {port}; location / {{ root /usr/share/nginx/html; index index.html; }} }}\n");
    Tree::default()
        .put("etc/nginx/conf.d/broken.conf", Item::Whiteout)
        .text("etc/nginx/conf.d/default.conf", &site)
}

const NGINX: &str = "user nginx;
worker_processes 1;
error_log /var/log/nginx/error.log warn;
pid /var/run/nginx.pid;
events { worker_connections 1024; }
http {
    include /etc/nginx/mime.types;
    access_log /var/log/nginx/access.log;
    include /etc/nginx/conf.d/*.conf;
}
";

/// Apache's server, where upstream's image has it.
fn httpd_root(packages: &Packages) -> Result<Tree> {
    let libraries = [
        "libcrypt",
        "libpcre2-8",
        "libexpat",
        "libuuid",
        "libapr-1",
        "libaprutil-1",
    ];
    let mut configuration = HTTPD.to_owned();
    let mut tree = Tree::default()
        .put_all(packages.libraries(&libraries)?)
        .put("usr/local/apache2/bin/httpd", packages.file("usr/sbin/apache2")?)
        .dir("usr/local/apache2/logs", 0o755)
        .text(
            "usr/local/apache2/htdocs/index.html",
            "<html><body><h1>It works!</h1></body></html>\n",
        )
        .text("etc/mime.types", "text/html html\n")
        .file("usr/local/bin/httpd-foreground", 0o755, HTTPD_FOREGROUND.as_bytes());
    for module in ["mpm_event", "authn_core", "authz_core", "dir", "mime"] {
        let path = format!("usr/lib/apache2/modules/mod_{module}.so");
        configuration.push_str(&format!("LoadModule {module}_module /{path}\n"));
        tree = tree.put(&path, packages.file(&path)?);
    }
    configuration.push_str(HTTPD_MODULES);
    Ok(tree.text("usr/local/apache2/conf/httpd.conf", &configuration))
}

const HTTPD: &str = "ServerRoot /usr/local/apache2
Listen 80
ServerName localhost
User daemon
Group daemon
PidFile logs/httpd.pid
DocumentRoot /usr/local/apache2/htdocs
ErrorLog /proc/self/fd/2
LogLevel warn
";

/// What means something only once the modules are loaded.
const HTTPD_MODULES: &str = "TypesConfig /etc/mime.types
Mutex file:logs
<Directory />
    Require all granted
</Directory>
DirectoryIndex index.html
StartServers 1
ThreadsPerChild 5
MaxRequestWorkers 5
MinSpareThreads 1
MaxSpareThreads 5
";

const HTTPD_FOREGROUND: &str = r#"#!/bin/sh
rm -f /usr/local/apache2/logs/httpd.pid
exec httpd -DFOREGROUND -f /usr/local/apache2/conf/httpd.conf "$@"
"#;
