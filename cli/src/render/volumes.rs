//! The volumes of a unit, which may be thousands, and what lies below them without belonging to it.

use std::collections::BTreeMap;

use flocker_core::status::UnitStatus;
use flocker_engine::api::NodeView;

use crate::out::{Theme, clean};
use crate::quantity::count;

/// More than so many are named one by one only when that is asked for.
pub(crate) const SHOWN: usize = 8;

/// For people.
pub(crate) fn for_people(
    text: &mut String,
    view: &NodeView,
    status: &UnitStatus,
    verbose: bool,
    theme: Theme,
) {
    let many = status.volumes.len() > SHOWN && !verbose;
    for volume in status.volumes.iter().take(if many { 1 } else { usize::MAX }) {
        let path = view
            .paths
            .get(volume.dataset.as_str())
            .map_or_else(String::new, |path| format!("  {}", path.display()));
        let joining = if volume.joining { "  joining" } else { "" };
        text.push_str(&format!(
            "  volume    {} ({}){path}{}\n",
            volume.dataset,
            volume.kind,
            theme.dim(joining)
        ));
    }
    if many {
        text.push_str(&format!("  and       {}\n", others(status)));
    } else if status.tree.is_some() {
        text.push_str("  tree      and whatever is made below it\n");
    }
    if let Some(left_out) = view.left_out.get(&status.name) {
        let names: Vec<String> = left_out.datasets.iter().map(ToString::to_string).collect();
        let shown = if verbose { names.len() } else { names.len().min(3) };
        let more = if shown < names.len() { ", …" } else { "" };
        let what = match &left_out.why {
            Some(why) => format!("not joined yet: {}", clean(why)),
            None => "to have them in it: flocker-repl protect … --recursive".to_owned(),
        };
        text.push_str(&format!(
            "  {} {} below it {} not protected with it: {}{more}; {what}\n",
            theme.warn("!"),
            count(names.len() as u64, "dataset"),
            if names.len() == 1 { "is" } else { "are" },
            names[..shown].join(", ")
        ));
    }
}

/// All but the first, in one line.
fn others(status: &UnitStatus) -> String {
    let rest = &status.volumes[1..];
    let mut kinds: BTreeMap<String, u64> = BTreeMap::new();
    for volume in rest {
        *kinds.entry(volume.kind.to_string()).or_default() += 1;
    }
    let kinds: Vec<String> = kinds.iter().map(|(kind, number)| count(*number, kind)).collect();
    let joining = rest.iter().filter(|v| v.joining).count();
    let joining = if joining > 0 { format!(", {joining} joining") } else { String::new() };
    let tree = if status.tree.is_some() { " with whatever is made there" } else { "" };
    format!(
        "{} below or beside it{tree} ({}{joining}); --verbose names them",
        rest.len(),
        kinds.join(", ")
    )
}

/// For programs: the words behind `volumes=` and those that follow.
pub(crate) fn plain(
    view: &NodeView,
    status: &UnitStatus,
    verbose: bool,
) -> Vec<(&'static str, String)> {
    let all = verbose || status.volumes.len() <= SHOWN;
    let named = if all { status.volumes.len() } else { 1 };
    let named = status.volumes.iter().take(named).map(|v| v.dataset.as_str());
    let mut words = vec![("volumes", named.collect::<Vec<_>>().join(","))];
    if !all {
        words.push(("volume_count", status.volumes.len().to_string()));
    }
    if status.tree.is_some() {
        words.push(("tree", "yes".to_owned()));
    }
    if let Some(left_out) = view.left_out.get(&status.name) {
        let names: Vec<&str> = left_out.datasets.iter().map(|name| name.as_str()).collect();
        words.push(("left_out", names.join(",")));
        if let Some(why) = &left_out.why {
            words.push(("left_out_why", why.clone()));
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::samples;
    use flocker_core::tree::Tree;
    use flocker_engine::api::LeftOutView;
    use flocker_store::DatasetKind;

    fn tree(volumes: usize) -> (NodeView, UnitStatus) {
        let (view, mut status) = (samples::view(), samples::unit());
        status.tree = Some(Tree::default());
        let one = status.volumes[0].clone();
        status.volumes = (0..volumes)
            .map(|at| {
                let name = match at {
                    0 => "tank/app".to_owned(),
                    _ => format!("tank/app/{at}"),
                };
                let kind = if at % 3 == 2 { DatasetKind::Zvol } else { DatasetKind::Filesystem };
                let dataset = flocker_store::DatasetName::new(name).unwrap();
                flocker_core::record::VolumeRecord { dataset, kind, ..one.clone() }
            })
            .collect();
        (view, status)
    }

    #[test]
    fn a_tree_of_thousands_takes_two_lines_unless_all_are_asked_for() {
        let (mut view, status) = tree(2000);
        let lines = |view: &NodeView, verbose| {
            let mut text = String::new();
            for_people(&mut text, view, &status, verbose, Theme::PLAIN);
            (text.lines().count(), text)
        };
        let (number, text) = lines(&view, false);
        assert_eq!(number, 2, "{text}");
        assert!(text.contains("1999 below or beside it"), "{text}");
        assert!(text.contains("1333 filesystems, 666 zvols") || text.contains("zvols"), "{text}");
        assert_eq!(lines(&view, true).0, 2001);
        let new = flocker_store::DatasetName::new("tank/app/new").unwrap();
        let left_out = LeftOutView { datasets: vec![new], why: Some("b is not connected".into()) };
        view.left_out.insert(status.name.clone(), left_out);
        let (_, text) = lines(&view, false);
        let said = "! 1 dataset below it is not protected with it: tank/app/new; not joined yet: b is not connected";
        assert!(text.contains(said), "{text}");
        let words = plain(&view, &status, false);
        assert_eq!(words[0], ("volumes", "tank/app".to_owned()));
        assert_eq!(words[1], ("volume_count", "2000".to_owned()));
        assert!(words.contains(&("left_out", "tank/app/new".to_owned())));
    }
}
