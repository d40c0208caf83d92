//! Man pages and completions, made from the one definition of the command line.

use std::fs;
use std::path::Path;

use crate::cli::{self, Completions, Man};

use super::fail::{Code, Failure, Outcome};
use super::screen;

/// `goldsync completions SHELL`
pub fn completions(args: &Completions) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut cli::command(), "goldsync", &mut script);
    screen::print(&String::from_utf8_lossy(&script))
}

/// `goldsync man [DIR]`
pub fn man(args: &Man) -> Outcome {
    match &args.dir {
        Some(dir) => write_all(dir),
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(cli::command())
                .render(&mut page)
                .map_err(|error| Failure::new(Code::Failed, format!("cannot make the page: {error}")))?;
            screen::print(&String::from_utf8_lossy(&page))
        }
    }
}

fn write_all(dir: &Path) -> Outcome {
    let failed = |error: std::io::Error| Failure::io("cannot write man pages into", dir, &error);
    fs::create_dir_all(dir).map_err(failed)?;
    clap_mangen::generate_to(cli::command(), dir).map_err(failed)?;
    screen::note(&format!("wrote the pages of goldsync(1) into {}", dir.display()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_page_for_every_verb() {
        let dir = tempfile::tempdir().unwrap();
        man(&Man { dir: Some(dir.path().join("man1")) }).unwrap();
        let mut pages: Vec<String> = fs::read_dir(dir.path().join("man1"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        pages.sort();
        for page in ["goldsync.1", "goldsync-publish.1", "goldsync-fleet-sync.1", "goldsync-token-create.1"] {
            assert!(pages.iter().any(|name| name == page), "{page} is not among {pages:?}");
        }
        let page = fs::read_to_string(dir.path().join("man1/goldsync-publish.1")).unwrap();
        assert!(page.contains("truncate") || page.contains("multiple of 4096"), "{page}");
    }
}
