//! Where transactions begin and end, and what applications say in them.

use super::json::{Reader, Scalar};
use super::row::{self, Text};
use super::{Decoder, Each, Located, time};
use crate::change::{Event, Message};
use crate::decode::Problem;
use crate::lsn::Lsn;

impl Decoder {
    pub(super) fn begin(&mut self, mut reader: Reader<'_>, each: Each<'_>) -> Result<(), Located> {
        if self.in_transaction {
            return Err((Problem::TransactionOpen, 0));
        }
        let (mut xid, mut commit_lsn, mut commit_micros) = (None, None, None);
        let mut first = false;
        while let Some(field) = reader.field(&mut first)? {
            let at = reader.offset();
            match field {
                b"xid" => {
                    let number = u32::try_from(row::integer(&mut reader)?);
                    xid = Some(number.map_err(|_| (Problem::Syntax("a transaction id"), at))?);
                }
                b"timestamp" => {
                    let micros = time::unix_micros(reader.quoted()?.raw);
                    commit_micros = Some(micros.ok_or((Problem::CommitTime, at))?);
                }
                // Where the commit record begins; "nextlsn" is where it ends, as the commit says again.
                b"lsn" => commit_lsn = Some(lsn(&mut reader)?),
                _ => reader.skip()?,
            }
        }
        reader.end()?;
        let at = reader.offset();
        let missing = |name| (Problem::MissingField(name), at);
        let xid = xid.ok_or_else(|| missing("xid"))?;
        let commit_lsn = commit_lsn.ok_or_else(|| missing("lsn"))?;
        let commit_micros = commit_micros.ok_or_else(|| missing("timestamp"))?;
        self.in_transaction = true;
        each(Event::Begin { xid, commit_lsn, commit_micros });
        Ok(())
    }

    pub(super) fn commit(&mut self, mut reader: Reader<'_>, each: Each<'_>) -> Result<(), Located> {
        self.demand_transaction()?;
        let mut end_lsn = None;
        let mut first = false;
        while let Some(field) = reader.field(&mut first)? {
            match field {
                b"nextlsn" => end_lsn = Some(lsn(&mut reader)?),
                _ => reader.skip()?,
            }
        }
        reader.end()?;
        let end_lsn = end_lsn.ok_or((Problem::MissingField("nextlsn"), reader.offset()))?;
        self.in_transaction = false;
        each(Event::Commit { end_lsn });
        Ok(())
    }

    pub(super) fn logical_message(
        &mut self,
        mut reader: Reader<'_>,
        message: &[u8],
        each: Each<'_>,
    ) -> Result<(), Located> {
        let (mut transactional, mut prefix, mut content) = (None, None, None);
        let mut first = false;
        while let Some(field) = reader.field(&mut first)? {
            let at = reader.offset();
            match field {
                b"transactional" => {
                    transactional = Some(match reader.scalar()? {
                        Scalar::True => true,
                        Scalar::False => false,
                        _ => return Err((Problem::Syntax("true or false"), at)),
                    });
                }
                b"prefix" => prefix = Some(Text::of(reader.quoted()?, &mut self.scratch)?),
                b"content" => content = Some(Text::of(reader.quoted()?, &mut self.scratch)?),
                _ => reader.skip()?,
            }
        }
        reader.end()?;
        let at = reader.offset();
        let missing = |name| (Problem::MissingField(name), at);
        let transactional = transactional.ok_or_else(|| missing("transactional"))?;
        if transactional {
            self.demand_transaction()?;
        }
        let prefix = prefix.ok_or_else(|| missing("prefix"))?;
        let prefix =
            std::str::from_utf8(prefix.bytes(message, &self.scratch)).map_err(|_| (Problem::InvalidUtf8, at))?;
        let content = content.ok_or_else(|| missing("content"))?;
        let content = content.bytes(message, &self.scratch);
        each(Event::Message(Message { transactional, prefix, content }));
        Ok(())
    }

    pub(super) fn demand_transaction(&self) -> Result<(), Located> {
        if self.in_transaction { Ok(()) } else { Err((Problem::NoTransaction, 0)) }
    }
}

fn lsn(reader: &mut Reader<'_>) -> Result<Lsn, Located> {
    let at = reader.offset();
    let text = std::str::from_utf8(reader.quoted()?.raw).ok();
    text.and_then(|text| text.parse().ok()).ok_or((Problem::Syntax("an LSN"), at))
}
