//! The difference between "it does not hold" and "it cannot be found out on this machine".
//!
//! Everything in the kit that asks the machine for something (a namespace, a raw socket, a process) fails with [`Lacks`]; a foreign
//! program that is not installed with [`Missing`]. The demo and the tests tell these apart from the failures of what they look at. It
//! must never be made of anything that a fault of the product could bring about.

use anyhow::{Error, Result};

use crate::programs::Missing;

/// What this machine does not give, in its own words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Lacks(String);

impl Lacks {
    /// The reason, if this error says nothing about the product.
    #[must_use]
    pub fn reason(error: &Error) -> Option<String> {
        (error.is::<Self>() || error.is::<Missing>()).then(|| format!("{error:#}"))
    }
}

/// For results that depend on the machine alone.
pub trait Here<T> {
    /// An error becomes one of the machine.
    ///
    /// # Errors
    /// [`Lacks`], or [`Missing`] as it was.
    fn here(self) -> Result<T>;
}

impl<T, E: Into<Error>> Here<T> for std::result::Result<T, E> {
    fn here(self) -> Result<T> {
        self.map_err(|error| {
            let error: Error = error.into();
            if Lacks::reason(&error).is_some() { error } else { Lacks(format!("{error:#}")).into() }
        })
    }
}

#[cfg(test)]
mod tests {
    use anyhow::{Context as _, anyhow};

    use super::*;
    use crate::programs::need;

    #[test]
    fn what_the_machine_lacks_is_told_from_what_does_not_hold() {
        let refused = || std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let socket = Err::<(), _>(refused()).context("a raw socket").here().context("a capture").unwrap_err();
        assert_eq!(Lacks::reason(&socket).unwrap(), "a capture: a raw socket: permission denied");
        let program = need("no-such-program").here().unwrap_err();
        assert!(program.is::<Missing>() && Lacks::reason(&program).unwrap().contains("apt-get install"));
        assert_eq!(Lacks::reason(&anyhow!("seen in the clear").context("the link")), None);
        assert_eq!(Lacks::reason(&refused().into()), None);
    }
}
