//! Changes of rows, and tables that were emptied.

use super::json::{self, Reader};
use super::row::{self, Told};
use super::tables::Place;
use super::{Decoder, Each, Located, announce};
use crate::change::{Change, Event, OldTuple};
use crate::decode::Problem;

impl Decoder {
    /// A row's change, or a table that was emptied: a message for each of several.
    pub(super) fn change(
        &mut self,
        action: u8,
        mut reader: Reader<'_>,
        message: &[u8],
        each: Each<'_>,
    ) -> Result<(), Located> {
        self.demand_transaction()?;
        let (mut has_new, mut has_old) = (false, false);
        let (mut has_schema, mut has_table) = (false, false);
        self.name.clear();
        let mut first = false;
        while let Some(field) = reader.field(&mut first)? {
            match field {
                b"schema" if !has_schema => {
                    json::unescape(reader.quoted()?, &mut self.name)?;
                    self.name.push(0);
                    has_schema = true;
                }
                b"table" if has_schema && !has_table => {
                    json::unescape(reader.quoted()?, &mut self.name)?;
                    has_table = true;
                    // Of another table it is not needed what else the message says.
                    if !self.is_ours(reader.offset(), each)? {
                        return Ok(());
                    }
                }
                b"columns" => {
                    has_new = true;
                    row::read(&mut reader, self.numbers_as_text, &mut self.scratch, &mut self.new)?;
                }
                b"identity" => {
                    has_old = true;
                    row::read(&mut reader, self.numbers_as_text, &mut self.scratch, &mut self.old)?;
                }
                _ => reader.skip()?,
            }
        }
        reader.end()?;
        let at = reader.offset();
        let Some(Place::Ours(table)) = self.tables.get_mut(&self.name).filter(|_| has_table) else {
            return Err((Problem::MissingField("table"), at));
        };
        if action == b'T' {
            announce(table, each);
            each(Event::Change(Change::Truncate { relations: vec![table.relation.clone()] }));
            return Ok(());
        }
        if !has_new && action != b'D' {
            return Err((Problem::MissingField("columns"), at));
        }
        let told = Told {
            message,
            scratch: &self.scratch,
            new: (action != b'D').then_some(&self.new[..]),
            old: (action != b'I' && has_old).then_some(&self.old[..]),
            is_update: action == b'U',
        };
        let tuples = match table.known(told) {
            Some(tuples) => {
                announce(table, each);
                table.stranger = None;
                if tuples.leave_out() {
                    // Unchanged, or of a column that was dropped: the catalog tells, before anything is made of it.
                    each(Event::Relation(tuples.relation.clone()));
                }
                tuples
            }
            None => {
                let tuples = table.strange(told)?;
                if table.stranger.is_none() {
                    each(Event::Relation(tuples.relation.clone()));
                }
                table.stranger = Some(tuples.relation.clone());
                tuples
            }
        };
        let relation = tuples.relation;
        let old = match tuples.old {
            None => OldTuple::None,
            Some((tuple, true)) => OldTuple::Full(tuple),
            Some((tuple, false)) => OldTuple::Key(tuple),
        };
        each(Event::Change(match (action, tuples.new) {
            (b'I', Some(new)) => Change::Insert { relation, new },
            (b'U', Some(new)) => Change::Update { relation, old, new },
            _ if old == OldTuple::None => Change::Untold { relation },
            _ => Change::Delete { relation, old },
        }));
        Ok(())
    }
}
