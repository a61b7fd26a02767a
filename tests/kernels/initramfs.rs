//! Writes an initramfs: a cpio archive of the "newc" kind, as the kernel's documentation has it in
//! `driver-api/early-userspace/buffer-format.rst`. Not compressed: unpacking would cost an emulated machine more than reading.

use std::collections::HashSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Files in memory, by absolute paths. Directories above them are made as needed.
#[derive(Default)]
pub(crate) struct Initramfs {
    archive: Vec<u8>,
    directories: HashSet<PathBuf>,
    entries: usize,
}

impl Initramfs {
    #[track_caller]
    pub(crate) fn copy(&mut self, path: impl AsRef<Path>, source: &Path) {
        let contents = fs::read(source).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
        self.file(path, 0o755, &contents);
    }

    pub(crate) fn file(&mut self, path: impl AsRef<Path>, mode: u32, contents: &[u8]) {
        let path = path.as_ref();
        self.directory(path.parent().unwrap());
        self.entry(path, 0o100_000 | mode, contents);
    }

    pub(crate) fn directory(&mut self, path: impl AsRef<Path>) {
        let path = path.as_ref();
        let Some(parent) = path.parent() else { return };
        if self.directories.insert(path.to_owned()) {
            self.directory(parent);
            self.entry(path, 0o040_755, &[]);
        }
    }

    /// The archive, with the end that it needs.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.entry(Path::new("/TRAILER!!!"), 0, &[]);
        self.archive
    }

    fn entry(&mut self, path: &Path, mode: u32, contents: &[u8]) {
        let name = path.strip_prefix("/").unwrap().to_str().unwrap();
        self.entries += 1;
        let fields = [
            self.entries, // inode: no two are the same file
            mode as usize,
            0, // uid
            0, // gid
            1, // links
            0, // mtime
            contents.len(),
            0, // device, major and minor
            0,
            0, // what a device node stands for, major and minor
            0,
            name.len() + 1,
            0, // checksum, which this kind has not
        ];
        self.archive.extend(b"070701");
        for field in fields {
            write!(self.archive, "{field:08x}").unwrap();
        }
        self.archive.extend(name.bytes().chain([0]));
        self.pad();
        self.archive.extend(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.archive.resize(self.archive.len().next_multiple_of(4), 0);
    }
}
