//! The extension's memory. Three rules:
//!
//! * Whatever is given back is zeroed first, so that no secret outlives its owner in free memory (K5): not the handle that
//!   was dropped, nor the buffers of TLS, HTTP and JSON that it passed.
//! * A call whose work clients choose has a budget ([`within`]). What it takes beyond, or what the machine has not got,
//!   ends that call alone: it unwinds, gives back what it took, and its caller gets an error (G3).
//! * Everything else is bounded by limits and must not fail half way: it draws on a reserve ([`keep_spare`]) when the
//!   machine has no memory left.
//!
//! Measured with `bench/store.py`: zeroing makes puts a tenth dearer and gets not at all. mimalloc below it made gets a
//! quarter slower.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::hint::black_box;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering};

/// Alignment of the reserve; more than any allocation needs.
const ALIGNMENT: usize = 4096;
/// No call with a budget is under way.
const UNLIMITED: usize = usize::MAX;

static CALL_BYTES: AtomicUsize = AtomicUsize::new(UNLIMITED - 1);
static SPARE: AtomicPtr<u8> = AtomicPtr::new(ptr::null_mut());
static SPARE_BYTES: AtomicUsize = AtomicUsize::new(0);
/// Allocations within budgets until one fails on purpose; 0: none will.
static FAILS_IN: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// What the call under way may still take.
    static LEFT: Cell<usize> = const { Cell::new(UNLIMITED) };
}

/// Why a call ended before its time; nothing of what it did counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It took more than its budget, or more than there is.
    Exhausted,
    /// It panicked.
    Panicked,
}

/// What an allocation that fails within a budget unwinds with.
struct Exhausted;

/// How much one call may take, from now on.
pub fn limit_calls(bytes: usize) {
    if cfg!(catches_exhaustion) {
        CALL_BYTES.store(bytes.min(UNLIMITED - 1), Ordering::Relaxed);
    }
}

/// Keep a reserve for what must not fail; the first size counts. It costs addresses, and no memory before it is needed.
pub fn keep_spare(bytes: usize) {
    // Whoever gives it back must know the size that it was taken with.
    let first = SPARE_BYTES.compare_exchange(0, bytes, Ordering::Relaxed, Ordering::Relaxed);
    if first.is_ok() {
        refill();
    }
}

/// Run `work` with the budget of a call.
///
/// # Errors
/// It was ended: see [`Failure`].
pub fn within<T>(work: impl FnOnce() -> T) -> Result<T, Failure> {
    let before = LEFT.get();
    LEFT.set(CALL_BYTES.load(Ordering::Relaxed).min(before));
    let done = guarded(work);
    LEFT.set(before);
    done
}

/// Run `work` without a budget, also within a call that has one: it is bounded otherwise, and must not fail half way.
///
/// # Errors
/// It panicked.
pub fn unlimited<T>(work: impl FnOnce() -> T) -> Result<T, Failure> {
    let before = LEFT.replace(UNLIMITED);
    let done = guarded(work);
    LEFT.set(before);
    refill();
    done
}

fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|payload| {
        if payload.is::<Exhausted>() {
            Failure::Exhausted
        } else {
            Failure::Panicked
        }
    })
}

/// Have the allocation after so many others fail, of those within budgets, on any thread; 0 calls that off.
///
/// Returns how many were still to come: 0 when the last one that was asked for has failed.
pub fn exhaust_for_test(after: u64) -> u64 {
    FAILS_IN.swap(after, Ordering::Relaxed)
}

fn fails_on_purpose() -> bool {
    // Without a test this is one read of a value that nobody writes.
    FAILS_IN.load(Ordering::Relaxed) != 0
        && FAILS_IN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) == Ok(1)
}

/// Unwind from an allocation that failed within a budget; from any other this returns, and the process ends.
#[cfg(catches_exhaustion)]
fn failed(_: Layout) {
    if LEFT.get() != UNLIMITED {
        // Who unwinds must not fail again.
        LEFT.set(UNLIMITED);
        resume_unwind(Box::new(Exhausted));
    }
}

/// Have failed allocations end their call and not the process; to be called once.
///
/// Returns whether the compiler allowed that (docs/adr/0009).
pub fn install() -> bool {
    #[cfg(catches_exhaustion)]
    std::alloc::set_alloc_error_hook(failed);
    cfg!(catches_exhaustion)
}

/// The allocator of the library that this is built into.
pub struct Allocator;

impl Allocator {
    /// Take a block by `take`, as far as budget and machine go.
    #[inline]
    fn allocate(layout: Layout, take: impl Fn() -> *mut u8) -> *mut u8 {
        let left = LEFT.get();
        if left == UNLIMITED {
            let block = take();
            return if block.is_null() && release() { take() } else { block };
        }
        if layout.size() > left || fails_on_purpose() {
            return ptr::null_mut();
        }
        let block = take();
        if !block.is_null() {
            LEFT.set(left - layout.size());
        }
        block
    }
}

// SAFETY: every call goes to the system's allocator with the caller's own arguments, or fails, which it may; a block is
// zeroed while it is still the caller's. `realloc` is the trait's own, made of these: what it leaves behind is zeroed too.
#[expect(unsafe_code, reason = "an allocator cannot be written without")]
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        Self::allocate(layout, || unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller promises.
        Self::allocate(layout, || unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let left = LEFT.get();
        if left != UNLIMITED {
            LEFT.set(left.saturating_add(layout.size()).min(UNLIMITED - 1));
        }
        // SAFETY: the block has `layout.size()` bytes, which nobody uses any more. Passing it through `black_box` keeps
        // the compiler from dropping the write as dead.
        unsafe {
            block.write_bytes(0, layout.size());
            System.dealloc(black_box(block), layout);
        }
    }
}

fn spare_layout() -> Option<Layout> {
    let bytes = SPARE_BYTES.load(Ordering::Relaxed);
    Layout::from_size_align(bytes, ALIGNMENT).ok().filter(|_| bytes > 0)
}

/// Take the reserve back, if it is gone and there is memory again.
fn refill() {
    if SPARE.load(Ordering::Relaxed).is_null()
        && let Some(layout) = spare_layout()
    {
        // SAFETY: the layout has a size. The block is never touched, so that it costs no memory.
        #[expect(unsafe_code, reason = "the reserve lies below the allocator")]
        let block = unsafe { System.alloc(layout) };
        let taken = SPARE.compare_exchange(ptr::null_mut(), block, Ordering::AcqRel, Ordering::Relaxed);
        if taken.is_err() {
            free_spare(block, layout);
        }
    }
}

/// Give the reserve to whoever needs it now; whether there was one.
fn release() -> bool {
    let block = SPARE.swap(ptr::null_mut(), Ordering::AcqRel);
    if let (false, Some(layout)) = (block.is_null(), spare_layout()) {
        free_spare(block, layout);
        return true;
    }
    false
}

fn free_spare(block: *mut u8, layout: Layout) {
    if !block.is_null() {
        // SAFETY: it was allocated with this layout, and whoever swapped it out is its only owner.
        #[expect(unsafe_code, reason = "the reserve lies below the allocator")]
        unsafe {
            System.dealloc(block, layout);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static ALLOCATOR: Allocator = Allocator;

    /// Limits are of the process, and so are failures on purpose.
    static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

    fn alone() -> std::sync::MutexGuard<'static, ()> {
        assert!(install(), "the build allows it");
        ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    struct Told<'a>(&'a Cell<bool>);

    impl Drop for Told<'_> {
        fn drop(&mut self) {
            self.0.set(true);
        }
    }

    #[test]
    fn a_call_that_takes_too_much_ends_alone() {
        let _alone = alone();
        limit_calls(1 << 20);
        let told = Cell::new(false);
        let done = within(|| {
            let _told = Told(&told);
            let mut grown = Vec::new();
            while grown.len() < 1 << 22 {
                grown.push(0_u8);
            }
            grown
        });
        assert_eq!(done.map(|grown| grown.len()), Err(Failure::Exhausted));
        assert!(told.get(), "what it held is dropped");
        assert_eq!(within(|| vec![0_u8; (1 << 20) - 1].len()), Ok((1 << 20) - 1));
        assert_eq!(
            within(|| black_box(Box::new([0_u8; 1 << 21])).len()),
            Err(Failure::Exhausted)
        );
        // What is given back may be taken again.
        assert_eq!(
            within(|| (0..100).map(|_| vec![1_u8; 1 << 18].len()).sum()),
            Ok(100 << 18)
        );
        // Others have no budget, nor has who must not fail within it.
        assert_eq!(vec![1_u8; 1 << 21].len(), 1 << 21);
        assert_eq!(
            within(|| unlimited(|| vec![1_u8; 1 << 21].len())),
            Ok(Ok(1 << 21)),
            "what must not fail"
        );
        // A call within a call has no more than that one.
        assert_eq!(
            within(|| within(|| vec![1_u8; 1 << 21].len())),
            Ok(Err(Failure::Exhausted))
        );
        limit_calls(UNLIMITED);
    }

    #[test]
    fn a_panic_is_another_failure() {
        let _alone = alone();
        assert_eq!(within(|| -> u8 { panic!("on purpose") }), Err(Failure::Panicked));
        assert_eq!(unlimited(|| -> u8 { panic!("on purpose") }), Err(Failure::Panicked));
        assert_eq!(within(|| 5), Ok(5));
    }

    #[test]
    fn the_reserve_serves_who_must_not_fail() {
        let _alone = alone();
        keep_spare(1 << 20);
        keep_spare(1 << 30);
        assert_eq!(SPARE_BYTES.load(Ordering::Relaxed), 1 << 20, "the first size counts");
        let (layout, asked) = (Layout::new::<[u8; 64]>(), Cell::new(0));
        let block = Allocator::allocate(layout, || {
            asked.set(asked.get() + 1);
            if asked.get() == 1 {
                ptr::null_mut()
            } else {
                ptr::dangling_mut()
            }
        });
        assert!(!block.is_null() && SPARE.load(Ordering::Relaxed).is_null());
        assert!(
            Allocator::allocate(layout, ptr::null_mut).is_null(),
            "there is one reserve"
        );
        assert_eq!(unlimited(|| ()), Ok(()));
        assert!(!SPARE.load(Ordering::Relaxed).is_null(), "and it is refilled");
        let before = SPARE.load(Ordering::Relaxed);
        let within_budget = within(|| Allocator::allocate(layout, ptr::null_mut).is_null());
        assert_eq!(within_budget, Ok(true), "who has a budget does not get it");
        assert_eq!(SPARE.load(Ordering::Relaxed), before);
    }

    #[test]
    fn an_allocation_fails_on_purpose_within_a_budget_alone() {
        let _alone = alone();
        exhaust_for_test(3);
        let taken: Vec<Box<u64>> = (0..10).map(Box::new).collect();
        assert_eq!(exhaust_for_test(3), 3);
        let done = within(|| taken.iter().map(|one| Box::new(**one)).collect::<Vec<_>>().len());
        assert_eq!(done, Err(Failure::Exhausted));
        assert_eq!(exhaust_for_test(0), 0);
    }
}
