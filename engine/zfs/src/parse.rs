//! The parser of `-Hp` output: fields between tabs, lines between line breaks, nothing more.
//!
//! Owns: cutting bytes into fields and fields into names, numbers and properties. Leaves to others:
//! which columns are asked for. What ZFS calls `-` is "no value". Values that nobody asked about stay
//! strings; names with spaces, `:` and `%` survive, since only tabs separate.

use flocker_store::{DatasetName, Property, PropertySource, SnapshotName, StoreError};

use crate::run::Finished;

/// One line, its fields checked to be as many as were asked for.
#[derive(Debug, Clone)]
pub(crate) struct Row<'a> {
    command: &'a str,
    line: &'a str,
    fields: Vec<&'a str>,
}

/// Cuts a command's stdout into rows of `columns` fields each.
///
/// # Errors
/// [`StoreError::Output`] for bytes that are not UTF-8 and for a row of another width.
pub(crate) fn rows(finished: &Finished, columns: usize) -> Result<Vec<Row<'_>>, StoreError> {
    let text = text(finished)?;
    let mut rows = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        if fields.len() != columns {
            return Err(StoreError::Output {
                command: finished.command.clone(),
                detail: format!("`{line}`: expected {columns} fields"),
            });
        }
        rows.push(Row { command: &finished.command, line, fields });
    }
    Ok(rows)
}

/// A command's stdout as text.
///
/// # Errors
/// [`StoreError::Output`] when it is not UTF-8.
pub(crate) fn text(finished: &Finished) -> Result<&str, StoreError> {
    std::str::from_utf8(&finished.stdout).map_err(|e| StoreError::Output {
        command: finished.command.clone(),
        detail: format!("not UTF-8 at byte {}", e.valid_up_to()),
    })
}

impl<'a> Row<'a> {
    /// A field as it stands.
    pub(crate) fn str(&self, column: usize) -> &'a str {
        self.fields[column]
    }

    /// A field, or `None` where ZFS says `-`.
    pub(crate) fn value(&self, column: usize) -> Option<&'a str> {
        match self.fields[column] {
            "-" => None,
            value => Some(value),
        }
    }

    /// A number.
    ///
    /// # Errors
    /// [`StoreError::Output`] when it is none.
    pub(crate) fn number<N: std::str::FromStr>(&self, column: usize) -> Result<N, StoreError> {
        self.fields[column]
            .parse()
            .map_err(|_| self.unreadable(&format!("`{}` is not a number", self.fields[column])))
    }

    /// A number, or `default` where ZFS says `-`.
    ///
    /// # Errors
    /// [`StoreError::Output`] when it is neither.
    pub(crate) fn number_or<N: std::str::FromStr>(
        &self,
        column: usize,
        default: N,
    ) -> Result<N, StoreError> {
        match self.value(column) {
            Some(_) => self.number(column),
            None => Ok(default),
        }
    }

    /// A dataset's name.
    ///
    /// # Errors
    /// [`StoreError::Name`].
    pub(crate) fn dataset(&self, column: usize) -> Result<DatasetName, StoreError> {
        Ok(DatasetName::reported(self.fields[column])?)
    }

    /// A snapshot's name.
    ///
    /// # Errors
    /// [`StoreError::Name`].
    pub(crate) fn snapshot(&self, column: usize) -> Result<SnapshotName, StoreError> {
        Ok(self.fields[column].parse()?)
    }

    /// The error for this row.
    pub(crate) fn unreadable(&self, why: &str) -> StoreError {
        StoreError::Output {
            command: self.command.to_owned(),
            detail: format!("`{}`: {why}", self.line),
        }
    }
}

/// What `zfs get` says in its `source` column.
pub(crate) fn source(word: &str) -> PropertySource {
    match word {
        "local" => PropertySource::Local,
        "received" => PropertySource::Received,
        _ if word.starts_with("inherited from ") => PropertySource::Inherited,
        _ => PropertySource::Other,
    }
}

/// Reads `zfs get -Hp -o property,source,value all` and keeps the user properties.
pub(crate) fn user_properties(text: &str) -> Vec<(String, Property)> {
    let mut found = properties(text);
    found.retain(|(name, property)| {
        name.contains(':') && !(property.value == "-" && property.source == PropertySource::Other)
    });
    found
}

/// Reads `zfs get -Hp -o property,source,value all`.
///
/// The value comes last because it alone may hold tabs and line breaks (zfs-fuse and OpenZFS take
/// both): a line that does not begin a property goes on with the value before it.
pub(crate) fn properties(text: &str) -> Vec<(String, Property)> {
    let mut found: Vec<(String, Property)> = Vec::new();
    for line in text.split_inclusive('\n') {
        let mut fields = line.splitn(3, '\t');
        match (fields.next(), fields.next(), fields.next()) {
            (Some(name), Some(from), Some(value)) if is_source(from) => found.push((
                name.to_owned(),
                Property { value: value.to_owned(), source: source(from) },
            )),
            _ => {
                if let Some((_, property)) = found.last_mut() {
                    property.value.push_str(line);
                }
            }
        }
    }
    for (_, property) in &mut found {
        if property.value.ends_with('\n') {
            property.value.pop();
        }
    }
    found
}

fn is_source(word: &str) -> bool {
    matches!(word, "-" | "local" | "default" | "received" | "temporary" | "none")
        || word.starts_with("inherited from ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Ending;

    fn finished(stdout: &[u8]) -> Finished {
        Finished {
            command: "zfs list".into(),
            ending: Ending::Code(0),
            stdout: stdout.to_vec(),
            stderr: String::new(),
        }
    }

    #[test]
    fn names_with_spaces_colons_and_percent_signs_survive() {
        let out = finished(b"tank/a b@auto_2026-01-01_00:00:00\t7\ntank/x/%recv\t-\n");
        let rows = rows(&out, 2).unwrap();
        assert_eq!(rows[0].snapshot(0).unwrap().short(), "auto_2026-01-01_00:00:00");
        assert_eq!(rows[0].number::<u64>(1).unwrap(), 7);
        assert_eq!(rows[1].dataset(0).unwrap().leaf(), "%recv");
        assert_eq!(rows[1].value(1), None);
        assert_eq!(rows[1].number_or(1, 0_u64).unwrap(), 0);
    }

    #[test]
    fn a_row_of_another_width_a_word_for_a_number_and_bad_utf8_are_named_not_guessed() {
        for (bytes, columns) in [(&b"a\tb\n"[..], 3), (b"a\xff\n", 1)] {
            let out = finished(bytes);
            let error = rows(&out, columns).unwrap_err();
            assert!(matches!(error, StoreError::Output { .. }), "{error}");
        }
        let out = finished(b"tank\t13.6E\n");
        let row = &rows(&out, 2).unwrap()[0];
        assert!(row.number::<u64>(1).unwrap_err().to_string().contains("13.6E"));
    }

    #[test]
    fn user_properties_keep_tabs_line_breaks_and_what_they_do_not_know() {
        let text = "type\t-\tfilesystem\ncom.sun:auto\tinherited from tank/a b\ttrue\n\
                    flocker-repl:id\tlocal\ta\tb\nc\nx:empty\tlocal\t\nx:é\treceived\té:%\n";
        let found = user_properties(text);
        let expect = [
            ("com.sun:auto", "true", PropertySource::Inherited),
            ("flocker-repl:id", "a\tb\nc", PropertySource::Local),
            ("x:empty", "", PropertySource::Local),
            ("x:é", "é:%", PropertySource::Received),
        ];
        assert_eq!(found.len(), expect.len());
        for ((name, property), (n, v, s)) in found.iter().zip(expect) {
            assert_eq!((name.as_str(), property.value.as_str(), property.source), (n, v, s));
        }
    }
}
