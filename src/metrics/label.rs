//! The labels' values.

/// A bounded label: the cached handles of its values are an array in the order of `ALL`.
macro_rules! label {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl $name {
            pub(super) const ALL: [(Self, &'static str); [$($text),+].len()] = [$((Self::$variant, $text)),+];

            /// Its text.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
    };
}

label! {
    /// What a row change does.
    Op {
        /// A row was inserted.
        Insert = "insert",
        /// A row was updated.
        Update = "update",
        /// A row was deleted.
        Delete = "delete",
        /// The table was emptied, or rows of it changed that the stream does not tell.
        Truncate = "truncate",
    }
}

label! {
    /// Why entries became unservable.
    Cause {
        /// A row was updated, and the entity invalidates on change (or the new image could not be placed).
        Update = "update",
        /// A row was deleted.
        Delete = "delete",
        /// The table was emptied, or rows of it changed that the stream does not tell.
        Truncate = "truncate",
        /// The table changed its shape.
        Ddl = "ddl",
        /// The new image lacked an unchanged out-of-line value.
        Toast = "toast",
        /// The new image has a type that cannot be rendered from the stream.
        Opaque = "opaque",
        /// The application said so, by a message in the log.
        Command = "command",
        /// The value was larger than what is cached.
        Large = "large",
        /// A rule's lookup found it; or it could not be looked up.
        Lookup = "lookup",
        /// A new generation began, for any other reason.
        Generation = "generation",
    }
}

label! {
    /// Why all of an entity's entries were voided, rather than those that lookups find.
    LookupVoid {
        /// What lookups see is too far ahead of what is applied.
        Distance = "distance",
        /// There are too many.
        Many = "many",
        /// They find too many keys.
        Keys = "keys",
        /// The source has refused one, or cannot be asked.
        Failed = "failed",
        /// They take too long.
        Late = "late",
        /// A table that they read is locked.
        Locked = "locked",
        /// They have taken time in vain just before.
        Resting = "resting",
        /// What they see is not applied in time.
        Held = "held",
        /// A table that they read looks empty to them, and was not when their snapshot was taken.
        Emptied = "emptied",
    }
}

impl LookupVoid {
    /// In words.
    pub fn text(self) -> &'static str {
        match self {
            LookupVoid::Distance => "replication is further behind than apply.max_lookup_distance",
            LookupVoid::Many => "a round has more lookups than apply.max_lookups, or too large ones",
            LookupVoid::Keys => "lookups find too many keys",
            LookupVoid::Failed => "a lookup has failed",
            LookupVoid::Late => "lookups take longer than apply.lookup_timeout",
            LookupVoid::Locked => "a table that lookups read is locked",
            LookupVoid::Resting => "lookups have just taken time in vain, and are not tried again for a while",
            LookupVoid::Emptied => "a table that lookups read was emptied, rewritten or replaced meanwhile",
            LookupVoid::Held => "what lookups have seen was not applied within apply.lookup_hold",
        }
    }
}

label! {
    /// Why an entry was not read again after an event.
    NoRequery {
        /// Too many wait already.
        Full = "full",
        /// The event was not applied in time.
        Late = "late",
        /// The source is another system or timeline since.
        StartedOver = "started_over",
    }
}

label! {
    /// What the server keeps of the log for the slot: `wal_status` of `pg_replication_slots`, or that there is no slot.
    SlotStatus {
        /// No more than `max_wal_size`.
        Reserved = "reserved",
        /// More than `max_wal_size`; it is kept.
        Extended = "extended",
        /// More than `max_slot_wal_keep_size`: the next checkpoint removes it.
        Unreserved = "unreserved",
        /// The slot was invalidated: what it needed is removed, or it was idle for too long.
        Lost = "lost",
        /// There is no such slot.
        Missing = "missing",
    }
}

impl SlotStatus {
    /// From the column `wal_status`.
    pub fn of_wal_status(text: Option<&str>) -> Self {
        let found = Self::ALL.iter().find(|(_, name)| Some(*name) == text);
        // Null for a slot that reserves nothing, which a logical one does from the start.
        found.map_or(SlotStatus::Reserved, |(status, _)| *status)
    }

    /// Its name, as the label has it.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].1
    }
}

label! {
    /// Why Redis refused an apply script.
    Fenced {
        /// A higher epoch stands: another instance leads.
        Epoch = "epoch",
        /// The fence is missing or lower than what was seen: Redis lost writes.
        Lost = "lost",
    }
}

label! {
    /// Where a lookup went.
    Tier {
        /// In-process memory.
        L1 = "l1",
        /// Redis.
        L2 = "l2",
        /// Postgres.
        Source = "source",
    }
}

label! {
    /// What a lookup found.
    Answered {
        /// A servable entry (also one that says that the row is absent).
        Hit = "hit",
        /// Nothing that may be served: no entry, or one that is fenced, of an older generation, or expired.
        Miss = "miss",
        /// An entry that was served, marked as stale: replication is further behind than `stale_after`.
        Stale = "stale",
        /// The tier was not asked.
        Bypass = "bypass",
    }
}

label! {
    /// What became of a value read from the source.
    Fill {
        /// It was written to L2 under its lease.
        Published = "published",
        /// An event voided the lease first.
        Voided = "voided",
        /// It was answered without being cached.
        Uncached = "uncached",
        /// It was answered without being cached, because it is too large.
        Large = "large",
        /// The row is absent; its absence was published.
        Absent = "absent",
        /// The source did not answer.
        Error = "error",
        /// A query gave several rows for one key, and is to give one.
        Several = "several_rows",
        /// The read was turned away, or its turn did not come in time: too many wait.
        Refused = "refused",
    }
}

label! {
    /// What became of filling an entry anew that still stood.
    Renewal {
        /// The new value took its place.
        Published = "published",
        /// An event, or somebody else, replaced or dropped the entry first.
        Overtaken = "overtaken",
        /// The new value is kept in process only: L2 is away, or there is none.
        Uncached = "uncached",
        /// Somebody else fills it anew.
        Elsewhere = "elsewhere",
        /// The source did not answer.
        Error = "error",
    }
}

label! {
    /// A command of the application's, in a message in the log.
    Command {
        /// Entries were to be dropped.
        Invalidate = "invalidate",
        /// Entries were to be filled.
        Warm = "warm",
        /// Entries that bear a tag were to be dropped.
        Tag = "tag",
        /// Entries whose keys match a pattern were to be dropped.
        Pattern = "pattern",
        /// None that is known, or it could not be told which.
        Unknown = "unknown",
    }
}

label! {
    /// What became of a command, or of one key that it names.
    Commanded {
        /// It was carried out.
        Done = "done",
        /// It is not of the form that it should have.
        Malformed = "malformed",
        /// It names no entity of the configuration.
        UnknownEntity = "unknown_entity",
        /// What it names can be no key of the entity.
        BadKey = "bad_key",
        /// It is no pattern of keys.
        BadPattern = "bad_pattern",
        /// No entry of the configuration can bear such a tag.
        UnknownTag = "unknown_tag",
        /// It came in a message that belongs to no transaction.
        NotTransactional = "not_transactional",
        /// It came in a message that is too large.
        TooLarge = "too_large",
        /// Too many keys wait to be filled.
        Dropped = "dropped",
        /// The source did not answer, or others needed it more.
        Failed = "failed",
    }
}

label! {
    /// What became of a key that was warmed.
    Warmed {
        /// It was read from the source, and is cached.
        Filled = "filled",
        /// It was cached already, or a reader was filling it.
        Present = "present",
        /// It was read and could not be cached: somebody else held its lease.
        Unkept = "unkept",
        /// It can be no key of the entity.
        Strange = "strange",
        /// The source did not answer.
        Failed = "failed",
    }
}

label! {
    /// What became of comparing a cached entry with its row.
    Audit {
        /// They are equal.
        Ok = "ok",
        /// They differ, and no change is on its way that would explain it.
        Finding = "finding",
        /// They differed, and the entry was changed or dropped since: an event was on its way.
        Changed = "changed",
        /// They differed, and it could not be told why in time.
        Inconclusive = "inconclusive",
        /// The row or the entry could not be read.
        Error = "error",
    }
}

label! {
    /// An HTTP route.
    Route {
        /// `GET` and `HEAD /v1/{entity}/{key}`.
        Read = "read",
        /// `POST /v1/{entity}/batch`.
        Batch = "batch",
        /// Anything else.
        Other = "other",
    }
}
