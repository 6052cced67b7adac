//! `flocker-store-suite ROOT [--engine auto|command|library] [--only WORD] [--share N/M] [--spare DATASET]`: everything that
//! a store on real ZFS has to do, below a dataset that may be destroyed; or of M shares of it the one numbered N, from
//! 0. One line for each check; exit status 1 if one failed.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use flocker_store::{DatasetName, Store};
use flocker_tests::suite::{NotHere, Site, checks};
use flocker_zfs::{ZfsOptions, ZfsStore};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let (mut root, mut only, mut spare, mut share) = (None, String::new(), None, (0, 1));
    let mut options = ZfsOptions::default();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--only" => only = args.next().unwrap_or_default(),
            "--share" => {
                let word = args.next().unwrap_or_default();
                let parts = word.split_once('/').and_then(|(n, m)| {
                    Some((n.parse::<usize>().ok()?, m.parse().ok().filter(|m| *m > 0)?))
                });
                share = parts.expect("a share, such as 0/2");
            }
            "--engine" => {
                let word = args.next().unwrap_or_default();
                options.engine = word.parse().expect("auto, command or library");
            }
            "--spare" => spare = args.next(),
            _ => root = Some(arg),
        }
    }
    let Some(root) = root else {
        eprintln!(
            "usage: flocker-store-suite ROOT [--engine E] [--only WORD] [--share N/M] [--spare D]"
        );
        return ExitCode::from(2);
    };
    let root = DatasetName::new(root).expect("a dataset's name");
    let store: Arc<dyn Store> = match ZfsStore::open(&root, options.clone()) {
        Ok(store) => Arc::new(store),
        Err(error) => {
            eprintln!("{root}: {error}");
            return ExitCode::from(2);
        }
    };
    println!("{} on {}", store.capabilities().version, store.describe());
    let spare = spare.map(|s| DatasetName::new(s).expect("a dataset's name"));
    let (mut failed, mut inapplicable) = (0, 0);
    for (number, (name, check)) in checks().into_iter().enumerate() {
        if number % share.1 != share.0 || !name.contains(&only) {
            continue;
        }
        let corner = root.child(&format!("c{number}")).expect("a name");
        let made = std::process::Command::new("zfs").args(["create", corner.as_str()]).status();
        assert!(made.is_ok_and(|s| s.success()), "cannot make {corner}");
        let (spare, options) = (spare.clone(), options.clone());
        let site = Site { store: Arc::clone(&store), root: corner, spare, options };
        let begun = Instant::now();
        let outcome = check(&site);
        let took = begun.elapsed().as_secs_f64();
        match outcome {
            Ok(words) => println!("ok      {name} ({took:.1} s) {words}"),
            Err(trouble) if trouble.is::<NotHere>() => {
                inapplicable += 1;
                println!("n/a     {name}: {trouble}");
            }
            Err(trouble) => {
                failed += 1;
                println!("FAILED  {name}: {trouble}");
            }
        }
    }
    println!("{failed} failed, {} did not apply", inapplicable);
    ExitCode::from(u8::from(failed > 0))
}
