//! The comparison itself, on images small enough for a test: every installed peer makes the new image (the comparison fails
//! otherwise), and tables, JSON and plots say so.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::Result;

const BLOCK: usize = 4096;

/// Bytes that do not shrink, and a copy in which they moved by a block, with something new in the hole.
fn images(folder: &Path) -> Result<()> {
    let mut bytes = vec![0; 256 * BLOCK];
    blake3::Hasher::new().finalize_xof().fill(&mut bytes);
    fs::write(folder.join("old"), &bytes)?;
    bytes.splice(50 * BLOCK..50 * BLOCK, vec![7; BLOCK]);
    fs::write(folder.join("new"), &bytes)?;
    fs::write(folder.join("pairs"), "moved old new\ndrifted old-drift new\n")?;
    fs::copy(folder.join("old"), folder.join("old-drift"))?;
    Ok(())
}

fn compare(folder: &Path, arguments: &[&str]) -> Result<(bool, String)> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_goldsync-compare"));
    let output = command.arg("--images").arg(folder).args(arguments).output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

#[test]
fn what_is_installed_makes_the_new_image_and_what_is_not_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    images(folder.path()).unwrap();
    let peers = "rsync,zsync,casync,bita,zchunk,rdiff,xdelta3,zstd-patch,zstd";
    let (json, markdown, plots) = (path("all.json"), path("all.md"), path("plots"));
    let options = ["--peers", peers, "--json", &json, "--markdown", &markdown, "--plots", &plots];
    let (good, said) = compare(folder.path(), &options).unwrap();
    assert!(good, "{said}");

    let report: serde_json::Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    let markdown = fs::read_to_string(markdown).unwrap();
    let tools = report["environment"]["tools"].as_array().unwrap();
    assert_eq!(tools.len(), 9);
    for tool in tools {
        let name = tool["tool"].as_str().unwrap();
        let rows = |pair: &str| {
            let pair = report["pairs"].as_array().unwrap().iter().find(|one| one["name"] == pair).unwrap();
            let rows = pair["rows"].as_array().unwrap().iter().filter(|row| row["tool"] == name);
            rows.map(|row| (row["what"].as_str().unwrap().to_owned(), row["received"].as_u64().unwrap()))
                .collect::<Vec<_>>()
        };
        if tool["version"].is_null() {
            eprintln!("SKIPPED: {name} is not installed");
            assert!(rows("moved").is_empty() && said.contains("SKIPPED"), "{said}");
            continue;
        }
        let patches = name == "xdelta3" || name == "zstd-patch";
        assert_eq!(rows("drifted").is_empty(), patches, "{name}: nobody has a patch for what nobody knows");
        assert!(!rows("moved").is_empty(), "{name}");
        for (what, received) in rows("moved") {
            // All but a block of it is there already; in place, rsync overwrites what it would need.
            let finds = name != "zstd" && !what.contains("in place");
            assert!(received < if finds { 600 } else { 1100 } * 1024, "{what}: {received} bytes");
            assert!(received > 10, "{what}");
        }
    }
    assert!(markdown.contains("| rsync, ") || said.contains("SKIPPED: rsync"), "{markdown}");
    assert!(fs::read_to_string(folder.path().join("plots/moved.svg")).unwrap().contains("</svg>"));
}

#[test]
fn wrong_input_is_an_error_that_says_so() {
    let folder = tempfile::tempdir().unwrap();
    assert!(compare(folder.path(), &[]).unwrap().1.contains("make-images"));
    images(folder.path()).unwrap();
    let (good, said) = compare(folder.path(), &["--peers", "rcp"]).unwrap();
    assert!(!good && said.contains("zsync"), "{said}");
    let (good, said) = compare(folder.path(), &["--pairs", "none", "--peers", "zstd"]).unwrap();
    assert!(!good && said.contains("none"), "{said}");
}
