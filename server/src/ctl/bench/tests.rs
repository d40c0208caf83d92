//! Forecasts of small real images, and of what is none.

use std::path::Path;
use std::process::Command;

use super::ext4::Owner;
use super::*;
use crate::golden::testing::noise;

fn forecast_of(old: &Path, new: &Path) -> Outcome<Forecast> {
    let json = cli::Json { json: false };
    let (old, new) = (old.into(), new.into());
    forecast(&cli::Bench { old, new, rate: 100.0, no_thorough: false, top: 5, quiet: true, json })
}

fn images(old: &[u8], new: &[u8]) -> (tempfile::TempDir, Outcome<Forecast>) {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("old"), folder.path().join("new"));
    std::fs::write(&a, old).unwrap();
    std::fs::write(&b, new).unwrap();
    let forecast = forecast_of(&a, &b);
    (folder, forecast)
}

#[test]
fn moved_new_zero_and_same_blocks_are_told_apart_and_paid_for() {
    let (base, fresh) = (noise(400, 1), noise(10, 2));
    let block = 4096;
    // 100 blocks stay, 10 are new, the next 200 moved by 10, and 90 are zeros.
    let new = [&base[..100 * block], &fresh, &base[100 * block..300 * block], &vec![0; 90 * block]].concat();
    let (_folder, forecast) = images(&base, &new);
    let forecast = forecast.unwrap();
    let blocks = &forecast.blocks;
    assert_eq!((blocks.all, blocks.in_place, blocks.moved, blocks.zero, blocks.sent), (400, 100, 200, 90, 10));
    assert_eq!((blocks.moved_runs, blocks.moved_backwards), (1, 0));
    let payload = |name: &str| way(&forecast, name).payload;
    for name in ["known base, quick", "known base, thorough", "unknown base"] {
        assert!((10 * 4096..10 * 4096 + 6000).contains(&payload(name)), "{name}: {} bytes", payload(name));
    }
    assert!((310 * 4096..330 * 4096).contains(&payload("nothing there")), "{} bytes", payload("nothing there"));
    assert_eq!(payload("nothing to do"), 0);
    assert_eq!(forecast.regions.len(), 1, "all that is new lies in the first MiB");
    assert!(forecast.causes.iter().any(|cause| cause.name == "moved_blocks" && cause.copied == 200));
    let text = text::of(&forecast, Some(100));
    for words in ["known base, quick pack", "The dearest regions", "estimated"] {
        assert!(text.contains(words), "{text}");
    }
    serde_json::to_string(&forecast).unwrap();
}

fn way<'a>(forecast: &'a Forecast, name: &str) -> &'a Way {
    forecast.ways.iter().find(|way| way.name.starts_with(name)).unwrap()
}

/// Changes by one byte in every 64: zstd has to tell all that lies between, a near copy only where it differs.
#[test]
fn a_thorough_plan_stands_beside_the_quick_one_unless_it_is_left_out() {
    let old = noise(64, 1);
    let mut new = old.clone();
    new.iter_mut().step_by(16).for_each(|byte| *byte = byte.wrapping_add(1));
    let (folder, forecast) = images(&old, &new);
    let forecast = forecast.unwrap();
    let (quick, thorough) = (way(&forecast, "known base, quick"), way(&forecast, "known base, thorough"));
    assert!(thorough.payload * 2 < quick.payload, "{} and {} bytes", thorough.payload, quick.payload);
    for way in [quick, thorough] {
        assert!(way.server_cpu.is_some_and(|cpu| cpu > 0.0) && way.node.is_some(), "{way:?}");
    }
    assert!(text::of(&forecast, Some(120)).contains("known base, thorough pack"));

    let (old, new) = (folder.path().join("old"), folder.path().join("new"));
    let json = cli::Json { json: false };
    let quickly = cli::Bench { old, new, rate: 100.0, no_thorough: true, top: 5, quiet: true, json };
    let names: Vec<&str> = super::forecast(&quickly).unwrap().ways.iter().map(|way| way.name).collect();
    assert_eq!(names, ["known base, quick pack", "unknown base", "nothing there", "nothing to do"]);
}

#[test]
fn equal_images_cost_nothing() {
    let image = noise(300, 1);
    let (_folder, forecast) = images(&image, &image);
    let forecast = forecast.unwrap();
    assert_eq!((forecast.blocks.sent, forecast.blocks.in_place), (0, 300));
    assert!(forecast.causes.is_empty() && forecast.uses.is_empty());
    assert!(text::of(&forecast, None).contains("Nothing of NEW has to travel"));
}

#[test]
fn blocks_that_were_shifted_by_a_few_bytes_are_found_off_the_grid() {
    let base = noise(600, 1);
    let mut new = [&b"seven.."[..], &base].concat();
    new.truncate(600 * 4096);
    let (_folder, forecast) = images(&base, &new);
    let forecast = forecast.unwrap();
    assert!(forecast.blocks.off_grid > 590, "{:?}", forecast.blocks);
    assert!(forecast.causes.iter().any(|cause| cause.name == "off_grid"));
    let unknown = way(&forecast, "unknown base");
    assert!(unknown.payload < 600 * 20 + 3 * 4096, "{} bytes", unknown.payload);
}

#[test]
fn what_is_no_image_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (good, ragged) = (folder.path().join("good"), folder.path().join("ragged"));
    std::fs::write(&good, [1; 8192]).unwrap();
    std::fs::write(&ragged, [1; 8191]).unwrap();
    assert!(forecast_of(&good, &ragged).unwrap_err().message.contains("truncate"));
    assert_eq!(forecast_of(&folder.path().join("none"), &good).unwrap_err().code, Code::Disk);
    assert_eq!(forecast_of(folder.path(), &good).unwrap_err().code, Code::Usage);
    assert!(forecast_of(&good, &good).is_ok());
}

#[test]
fn a_damaged_file_system_is_compared_by_its_blocks_and_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mut image) = ext4::tests::make(&["-t", "ext4"], folder.path(), 8) else { return };
    let old = image.clone();
    image[1024 + 40..1024 + 44].fill(0);
    let (_folder, forecast) = images(&old, &image);
    let forecast = forecast.unwrap();
    assert!(forecast.notes.iter().any(|note| note.contains("inodes in a group")), "{:?}", forecast.notes);
    assert!(forecast.files.is_empty() && !forecast.uses.is_empty());
}

/// A tree made into an image twice: with what a careless build leaves in.
#[test]
fn a_careless_build_is_told_what_it_costs() {
    let folder = tempfile::tempdir().unwrap();
    let tree = folder.path().join("tree");
    std::fs::create_dir_all(tree.join("boot")).unwrap();
    for number in 0..200 {
        std::fs::write(tree.join(format!("file-{number}")), noise(3, number)).unwrap();
    }
    let uuid = ["-U", "3f5a1c52-7a0e-4c5b-9a55-6d2f2b0c7e11", "-E", "hash_seed=8c1de0a4-52b1-4a5e-bb0b-6f7f6c1a9d03"];
    let options = [&["-t", "ext4", "-b", "4096"][..], &uuid].concat();
    let Some(old) = ext4::tests::make(&options, &tree, 16) else { return };
    // Files of a compression's mark, and one that changed.
    let gzip = [&[0x1f, 0x8b, 8][..], &noise(8, 5000)].concat();
    std::fs::write(tree.join("boot/pages.gz"), gzip).unwrap();
    std::fs::write(tree.join("file-7"), noise(3, 9999)).unwrap();
    Command::new("touch").args(["-d", "2001-02-03"]).arg(tree.join("file-9")).status().unwrap();
    let mut new = ext4::tests::make(&["-t", "ext4", "-b", "4096"], &tree, 16).unwrap();
    // What a deleted file leaves.
    let map = Map::read(&new).unwrap();
    let free = (0..new.len() as u32 / 4096).rfind(|block| map.owner(*block) == Owner::Free).unwrap() as usize;
    new[free * 4096 - 9 * 4096..free * 4096].copy_from_slice(&noise(9, 777));

    let (_images, forecast) = images(&old, &new);
    let forecast = forecast.unwrap();
    let text = text::of(&forecast, Some(110));
    let names: Vec<&str> = forecast.causes.iter().map(|cause| cause.name).collect();
    for name in ["compressed_files", "free_block_garbage", "identity"] {
        assert!(names.contains(&name), "{name} is not among {names:?}\n{text}");
    }
    let garbage = forecast.causes.iter().find(|cause| cause.name == "free_block_garbage").unwrap();
    assert!((8 * 4096..10 * 4096).contains(&garbage.bytes), "{garbage:?}");
    let file =
        |path: &str| forecast.files.iter().find(|file| file.path == path).unwrap_or_else(|| panic!("{path}: {text}"));
    let (page, changed) = (file("/boot/pages.gz"), file("/file-7"));
    assert_eq!((page.compressed, page.change), (Some("gzip"), uses::Change::New));
    assert_eq!((changed.compressed, changed.change, changed.sent, changed.blocks), (None, uses::Change::Changed, 3, 3));
    assert!((3 * 4000..3 * 4200).contains(&changed.bytes), "{changed:?}");
    let sum: u64 = forecast.uses.iter().map(|one| one.bytes).sum();
    assert!(sum.abs_diff(forecast.ways[0].payload) < forecast.ways[0].payload / 20, "{sum}");
    assert!(text.contains("/boot/pages.gz") && text.contains("zerofree"), "{text}");
}
