//! Records the source revision in the program.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=SAMEWIRE_COMMIT");
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_string())
    };
    // A new commit changes the log of HEAD; a new branch or worktree has its own.
    if let Some(log) = git(&["rev-parse", "--git-path", "logs/HEAD"]) {
        println!("cargo::rerun-if-changed={log}");
    }
    // Changes of any source: without these lines, a build with changes would keep the revision of one without.
    for directory in ["../protocol", "../servers", "../client", "src"] {
        println!("cargo::rerun-if-changed={directory}");
    }
    if std::env::var_os("SAMEWIRE_COMMIT").is_some() {
        return;
    }
    let dirty = git(&["status", "--porcelain", "--untracked-files=no"]);
    let commit = git(&["rev-parse", "HEAD"]).map(|commit| match dirty.as_deref() {
        Some("") => commit,
        _ => format!("{commit}-dirty"),
    });
    println!(
        "cargo::rustc-env=SAMEWIRE_COMMIT={}",
        commit.unwrap_or_default()
    );
}
