//! What the C library's allocator has no safe wrappers for.
#![allow(unsafe_code)]

/// Allocations of at least so many bytes are mappings of their own, which go back to the kernel when they are freed. By
/// itself glibc raises its threshold to what has been freed last, up to 32 MiB: after some answers of that size their memory
/// would stay with this process, in holes that nothing fits into.
#[cfg(target_env = "gnu")]
pub(super) fn return_large_allocations(bytes: i32) {
    // SAFETY: mallopt changes numbers of the allocator alone, and this is called before there is a second thread. It fails
    // for values that the allocator does not take, and then everything stays as it was.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, bytes) };
}

/// Other allocators have no such threshold.
#[cfg(not(target_env = "gnu"))]
pub(super) fn return_large_allocations(_bytes: i32) {}

/// Gives the kernel back what is free between allocations that are not.
#[cfg(target_env = "gnu")]
pub(super) fn return_holes() {
    // SAFETY: malloc_trim takes the allocator's own locks, and nothing that is allocated moves.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators are not asked.
#[cfg(not(target_env = "gnu"))]
pub(super) fn return_holes() {}
