//! Every bound of the format and of the daemon, with its arithmetic.

/// Longest file name in bytes, as on ext4.
pub const NAME_MAX: usize = 255;
/// Longest symbolic link target in bytes (`PATH_MAX` less the NUL).
pub const SYMLINK_MAX: usize = 4095;
/// Longest label in bytes, as whio_epfs had it.
pub const LABEL_MAX: usize = 64;
/// Most names one file can have, as on ext4.
pub const LINK_MAX: u32 = 65_000;
/// Longest extended attribute name in bytes (the kernel's `XATTR_NAME_MAX`).
pub const XATTR_NAME_MAX: usize = 255;
/// Longest extended attribute value in bytes (the kernel's `XATTR_SIZE_MAX`); a cask of small
/// blocks holds less, see `Geometry::max_item`.
pub const XATTR_SIZE_MAX: usize = 65_536;
/// Largest file in bytes: offsets stay positive as `i64`.
pub const FILE_SIZE_MAX: u64 = (1 << 62) - 1;
/// Largest `write(2)` the kernel passes on in one piece.
pub const WRITE_MAX: usize = 1 << 20;
/// Longest begun record that a cut carries into the new live log.
pub const CARRY_MAX: usize = 1 << 20;
/// Smallest block in bytes that `mkfs` makes; tests go down to 512.
pub const BLOCK_SIZE_MIN: u32 = 1024;
/// Largest block in bytes.
pub const BLOCK_SIZE_MAX: u32 = 65_536;
/// Default block in bytes.
pub const BLOCK_SIZE_DEFAULT: u32 = 4096;
/// Smallest write-ahead log in bytes that `mkfs` makes.
pub const WAL_MIN: u64 = 256 << 10;
/// Largest write-ahead log in bytes.
pub const WAL_MAX: u64 = 1 << 30;
/// Default write-ahead log in bytes, at most an eighth of the cask.
pub const WAL_DEFAULT: u64 = 64 << 20;

/// Longest that the kernel may believe a name or attributes, in seconds.
pub const BELIEVED_SECS: u64 = 3600;
