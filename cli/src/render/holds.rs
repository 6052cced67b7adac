//! `holds`: what we made in the store, who holds it, and why.

use flocker_engine::api::{HoldsView, KeptView};
use serde::Serialize;

use crate::out::{Theme, clean};
use crate::quantity::millis;

/// What `holds --json` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Holds<'a> {
    kept: &'a [KeptView],
    released: Vec<Released<'a>>,
}

#[derive(Debug, Serialize)]
struct Released<'a> {
    name: &'a str,
    tag: &'a str,
}

/// For programs.
pub(crate) fn object(view: &HoldsView) -> Holds<'_> {
    let released = view.released.iter().map(|(name, tag)| Released { name, tag });
    Holds { kept: &view.kept, released: released.collect() }
}

/// Seconds since 1970, for ages.
pub(crate) fn now_s() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

/// One line a snapshot or bookmark, below its unit.
pub(crate) fn for_people(view: &HoldsView, collect: bool, now_s: i64, theme: Theme) -> String {
    let mut text = String::new();
    let mut last: Option<&Option<String>> = None;
    for kept in &view.kept {
        if last != Some(&kept.unit) {
            let unit = match &kept.unit {
                Some(unit) => theme.strong(unit),
                None => theme.warn("of no unit here"),
            };
            text.push_str(&format!("{unit}\n"));
            last = Some(&kept.unit);
        }
        text.push_str(&line(kept, now_s, theme));
    }
    if view.kept.is_empty() {
        text.push_str("nothing of ours is in the store, and nothing is held\n");
    }
    for (name, tag) in &view.released {
        text.push_str(&format!(
            "{} released {} from {}\n",
            theme.mark(true),
            clean(tag),
            clean(name)
        ));
    }
    let stale = view.kept.iter().filter(|k| k.stale && !k.tags.is_empty()).count();
    if collect && view.released.is_empty() {
        text.push_str("every hold of ours is accounted for; nothing was released\n");
    } else if !collect && stale > 0 {
        let hint = theme.accent("flocker-repl holds --collect");
        text.push_str(&format!("stale holds are released by {hint}\n"));
    }
    text
}

fn line(kept: &KeptView, now_s: i64, theme: Theme) -> String {
    let age = kept.taken_unix_s.map_or_else(
        || "bookmark".to_owned(),
        |taken| {
            let seconds = u64::try_from(now_s.saturating_sub(taken)).unwrap_or(0);
            format!("{} old", millis(seconds.saturating_mul(1000)))
        },
    );
    let mut words = vec![age];
    if kept.stale {
        words.push(theme.warn("stale: no unit here knows it"));
    } else if kept.why.is_empty() && kept.foreign_tags.is_empty() {
        words.push("not needed any more".to_owned());
    }
    words.extend(kept.why.iter().map(|why| clean(why)));
    words.extend(kept.tags.iter().map(|tag| format!("held by {}", clean(tag))));
    words.extend(kept.foreign_tags.iter().map(|tag| format!("held by {} (not ours)", clean(tag))));
    format!("  {}  {}\n", clean(&kept.name), words.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_strangers_and_what_is_stale_are_told_apart() {
        let kept = |unit: Option<&str>, name: &str, tag: &str| KeptView {
            unit: unit.map(str::to_owned),
            name: name.into(),
            taken_unix_s: Some(1_000),
            tags: vec![tag.into()],
            foreign_tags: Vec::new(),
            why: Vec::new(),
            stale: unit.is_none(),
        };
        let mut base = kept(Some("db"), "t/db@flocker_1", "flocker-repl:1");
        base.why = vec!["base of b".into(), "newest".into()];
        base.foreign_tags = vec!["backup".into()];
        let view = HoldsView {
            kept: vec![base, kept(None, "t/old@flocker_2", "flocker-repl:2")],
            released: Vec::new(),
        };
        let text = for_people(&view, false, 1_060, Theme::PLAIN);
        for words in [
            "db\n  t/db@flocker_1  1 min 00 s old",
            "base of b; newest; held by flocker-repl:1; held by backup (not ours)",
            "of no unit here\n  t/old@flocker_2",
            "stale: no unit here knows it",
            "flocker-repl holds --collect",
        ] {
            assert!(text.contains(words), "`{words}` is not in:\n{text}");
        }
    }
}
