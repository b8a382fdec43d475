//! Whether a program can run where there is nothing but itself: an ELF file that asks for no interpreter.
//!
//! Called by `image` before a program goes into an image. A dynamic one would be taken by every tool, and end on each node with "no such file or
//! directory", which names no reason. It must never trust an offset of the file.

/// Why a program cannot be alone in an image.
#[derive(Debug, PartialEq, Eq)]
pub enum NotAlone {
    /// Some other kind of file, or one that was cut.
    NotElf,
    /// It is loaded by another program, which would have to be in the image with all the libraries that it looks for.
    Dynamic(String),
}

impl std::fmt::Display for NotAlone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotElf => write!(f, "is not an ELF program of 64 bits, little-endian"),
            Self::Dynamic(loader) => write!(
                f,
                "is linked dynamically: it asks for {loader:?}, and nothing else is in its image; build it with \
                 -Ctarget-feature=+crt-static"
            ),
        }
    }
}

impl std::error::Error for NotAlone {}

/// The first bytes of a file of 64 bits, little-endian, of the one version that there is.
const MAGIC: [u8; 7] = [0x7f, b'E', b'L', b'F', 2, 1, 1];
/// Of a program header: what its segment is.
const PT_INTERP: u32 = 3;
/// Bytes of a program header.
const HEADER: u16 = 56;

/// Looks at each program header (System V ABI, "Program Header").
///
/// # Errors
/// The file is no program, or asks for an interpreter.
pub fn alone(file: &[u8]) -> Result<(), NotAlone> {
    if !file.starts_with(&MAGIC) {
        return Err(NotAlone::NotElf);
    }
    let (table, each, count) = (word(file, 0x20)?, half(file, 0x36)?, half(file, 0x38)?);
    // Libraries and object files have no such table, or none of this form.
    if each != HEADER || count == 0 {
        return Err(NotAlone::NotElf);
    }
    for i in 0..u64::from(count) {
        let header = table.checked_add(i * u64::from(each)).and_then(|at| usize::try_from(at).ok());
        let header = header.ok_or(NotAlone::NotElf)?;
        let kind = u32::from_le_bytes(bytes(file, header)?);
        if kind == PT_INTERP {
            return Err(NotAlone::Dynamic(interpreter(file, header).unwrap_or_default()));
        }
    }
    Ok(())
}

fn interpreter(file: &[u8], header: usize) -> Option<String> {
    let at = usize::try_from(word(file, header + 0x08).ok()?).ok()?;
    let size = usize::try_from(word(file, header + 0x20).ok()?).ok()?;
    let path = file.get(at..at.checked_add(size)?)?;
    Some(String::from_utf8_lossy(path).trim_end_matches('\0').to_owned())
}

fn bytes<const N: usize>(file: &[u8], at: usize) -> Result<[u8; N], NotAlone> {
    let end = at.checked_add(N).ok_or(NotAlone::NotElf)?;
    file.get(at..end).and_then(|bytes| bytes.try_into().ok()).ok_or(NotAlone::NotElf)
}

fn half(file: &[u8], at: usize) -> Result<u16, NotAlone> {
    bytes(file, at).map(u16::from_le_bytes)
}

fn word(file: &[u8], at: usize) -> Result<u64, NotAlone> {
    bytes(file, at).map(u64::from_le_bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub mod tests {
    use super::*;

    /// The smallest program: its head and one segment to load.
    pub fn smallest() -> Vec<u8> {
        let mut file = MAGIC.to_vec();
        file.resize(0x40 + usize::from(HEADER), 0);
        file[0x20] = 0x40;
        file[0x36] = 56;
        file[0x38] = 1;
        file[0x40] = 1; // PT_LOAD
        file
    }

    #[test]
    fn a_program_that_asks_for_an_interpreter_is_refused_with_its_name() {
        let test = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for program in [std::fs::read("/bin/ls").unwrap(), test] {
            let error = alone(&program).unwrap_err();
            assert!(matches!(&error, NotAlone::Dynamic(path) if path.contains("/ld")), "{error}");
        }
    }

    /// With the flag that images are built with; such a program has a dynamic section all the same, as it can stand at any address.
    #[test]
    fn a_program_that_is_linked_statically_is_taken() {
        let dir = crate::programs::scratch("countersign-elf-test").unwrap();
        std::fs::write(dir.join("x.rs"), "fn main() { println!(\"alone\") }").unwrap();
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let args = ["-Ctarget-feature=+crt-static", "-Cstrip=symbols", "-o", "x", "x.rs"];
        let made = std::process::Command::new(rustc).args(args).current_dir(&dir).status().unwrap();
        assert!(made.success());
        let program = std::fs::read(dir.join("x")).unwrap();
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(alone(&program), Ok(()));
    }

    #[test]
    fn what_is_no_program_or_was_cut_is_refused_and_never_read_beyond_its_end() {
        assert_eq!(alone(&smallest()), Ok(()));
        for length in 0..smallest().len() - 52 {
            assert_eq!(alone(&smallest()[..length]), Err(NotAlone::NotElf), "{length}");
        }
        assert_eq!(alone(b"#!/bin/sh\n"), Err(NotAlone::NotElf));
        let mut far = smallest();
        far[0x20..0x28].fill(0xff);
        assert_eq!(alone(&far), Err(NotAlone::NotElf));
        let mut none = smallest();
        none[0x38] = 0;
        assert_eq!(alone(&none), Err(NotAlone::NotElf));
    }
}
