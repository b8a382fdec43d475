//! Holds no code: everything is in `tests/`, where each file is one kind of promise.
