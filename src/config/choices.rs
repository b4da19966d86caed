//! The names that choices have in the file, in `SET pgsluice.…` and in what is shown.

use super::{AuthMethod, Consistency, PoolMode, Promote, ReadFromPrimary, RoutePreference, RoutingMode, SslMode};

/// Gives an enum its names, in both directions.
macro_rules! named {
    ($($choice:ident { $($variant:ident = $name:literal),* })*) => {
        $(impl $choice {
            /// Every name, in the manual's order.
            pub const NAMES: &'static [&'static str] = &[$($name),*];

            /// As it is written.
            pub fn name(self) -> &'static str {
                match self {
                    $($choice::$variant => $name),*
                }
            }

            /// What a name stands for.
            pub fn from_name(name: &str) -> Option<$choice> {
                match name {
                    $($name => Some($choice::$variant),)*
                    _ => None,
                }
            }
        })*
    };
}

named! {
    AuthMethod { Trust = "trust", ScramSha256 = "scram-sha-256", Md5 = "md5" }
    Consistency {
        Eventual = "eventual", ReadYourWrites = "read_your_writes", Session = "session", Linearizable = "linearizable"
    }
    PoolMode { Transaction = "transaction", Session = "session", Statement = "statement" }
    Promote { Auto = "auto", Never = "never" }
    ReadFromPrimary { Never = "never", Fallback = "fallback", Also = "also" }
    RoutePreference { Auto = "auto", Primary = "primary", Standby = "standby" }
    RoutingMode { Split = "split", Observe = "observe" }
    SslMode {
        Disable = "disable", Allow = "allow", Prefer = "prefer", Require = "require", VerifyCa = "verify-ca",
        VerifyFull = "verify-full"
    }
}
