//! The allocator's habits (mallopt(3), malloc_trim(3)).
//!
//! glibc gives threads arenas of their own, up to eight a core, and each keeps what it once needed. Looks run on many short
//! threads: after hours of them the agent would hold several times the memory it uses.

/// `M_ARENA_MAX` of malloc.h.
#[cfg(target_env = "gnu")]
const M_ARENA_MAX: i32 = -8;
/// One for the loop and one for the looks.
#[cfg(target_env = "gnu")]
const ARENAS: i32 = 2;

/// Limits the arenas. To be called before threads are started; without glibc there is nothing to limit.
#[allow(unsafe_code, reason = "mallopt has no safe wrapper")]
pub fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two integers, touches no memory of ours, and is called before any other thread runs.
    unsafe {
        libc::mallopt(M_ARENA_MAX, ARENAS);
    }
}

/// `M_MMAP_THRESHOLD` of malloc.h.
#[cfg(target_env = "gnu")]
const M_MMAP_THRESHOLD: i32 = -3;
#[cfg(target_env = "gnu")]
const LARGE_BYTES: i32 = 256 * 1024;

/// Gives large pieces of memory mappings of their own, which grow without being copied: the kernel's description of its types
/// is read into some, and fresh pages cost a command that looks once a tenth of its time. Left to itself glibc raises the limit.
#[allow(unsafe_code, reason = "mallopt has no safe wrapper")]
pub fn map_large() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two integers, and touches no memory of ours.
    unsafe {
        libc::mallopt(M_MMAP_THRESHOLD, LARGE_BYTES);
    }
}

/// Gives back what was freed: to be called after something that needed much memory once (malloc_trim(3)).
#[allow(unsafe_code, reason = "malloc_trim has no safe wrapper")]
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes an integer, and touches no memory that is in use.
    unsafe {
        libc::malloc_trim(0);
    }
}
