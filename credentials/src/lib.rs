//! Hold: a process's own SVID and bundle, kept fresh, and TLS configurations made of them.
