use super::*;

/// A file that is removed again.
struct File(std::path::PathBuf);

impl File {
    fn with(name: &str, content: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("countersign-token-{}-{name}", std::process::id()));
        std::fs::write(&path, content).unwrap();
        Self(path)
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn why(file: &File) -> String {
    read(&file.0).await.unwrap_err().to_string()
}

#[tokio::test]
async fn white_space_around_the_token_is_no_part_of_it() {
    let file = File::with("spaces", b" \n\teyJhbGciOi.payload.sig-_\r\n\n");
    assert_eq!(*read(&file.0).await.unwrap(), "eyJhbGciOi.payload.sig-_");
}

#[tokio::test]
async fn an_empty_file_is_no_token() {
    assert!(why(&File::with("empty", b" \n")).await.ends_with(": empty"));
}

#[tokio::test]
async fn a_huge_file_is_not_read_to_its_end() {
    assert!(why(&File::with("huge", &vec![b'a'; 1 << 20])).await.ends_with(": larger than 16 KiB"));
}

#[tokio::test]
async fn a_refused_token_is_not_shown() {
    for content in [&b"secret one and secret two"[..], b"secret\xff\xfe", b"secret\x00"] {
        let said = why(&File::with("odd", content)).await;
        assert!(!said.contains("secret"), "{said}");
    }
}
