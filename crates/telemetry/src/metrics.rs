//! The metric registry and its building blocks.
//!
//! Two kinds of metrics meet on one page. What a request touches lives in cells with a single writer ([`Counter`],
//! [`Gauge`], [`Histogram`]), one shard per worker, and is merged by a [`Source`] only when somebody scrapes. What
//! happens rarely, in the control plane or at a push, lives in shared cells that the [`Registry`] hands out and
//! renders itself. The page is Prometheus's text format 0.0.4; names appear exactly as they are given.

pub mod cell;
pub mod histogram;
pub mod page;
pub mod process;
pub mod shared;

use std::sync::Arc;

use parking_lot::Mutex;

pub use cell::{Counter, Gauge};
pub use histogram::{Histogram, HistogramSnapshot, ISTIO_BUCKETS};
pub use page::{Format, Labels, Number, Page};
pub use shared::{SharedCounter, SharedGauge, SharedHistogram, Vector};

/// Something that writes its own families when the page is rendered.
pub trait Source: Send + Sync {
    /// Writes every sample of this source. Called on the control runtime, once per scrape; must not block.
    fn collect(&self, out: &mut Page);
}

struct FnSource<F>(F);

impl<F: Fn(&mut Page) + Send + Sync> Source for FnSource<F> {
    fn collect(&self, out: &mut Page) {
        (self.0)(out);
    }
}

/// All metrics of a process; cheap to clone.
#[derive(Clone, Default)]
pub struct Registry {
    sources: Arc<Mutex<Vec<Arc<dyn Source>>>>,
}

impl Registry {
    /// An empty registry.
    pub fn new() -> Self {
        Self::default()
    }

    /// A registry with the process metrics and `istio_build{component,tag}`.
    pub fn with_process(component: &str, tag: &str) -> Self {
        Self::with_process_as("", component, tag)
    }

    /// The same, with the process metrics called `PREFIXprocess_…`, where another's may stand beside them.
    pub fn with_process_as(prefix: &'static str, component: &str, tag: &str) -> Self {
        let registry = Self::new();
        registry.register(Arc::new(process::Process::new(prefix)));
        let labels = Labels::new().with("component", component).with("tag", tag);
        registry.register_fn(move |page| {
            page.gauge("istio_build", "Component and version of this build.").sample(&labels, 1_u64);
        });
        registry
    }

    /// Adds a source for the life of the registry. Two sources may write the same family, not the same series.
    pub fn register(&self, source: Arc<dyn Source>) {
        self.sources.lock().push(source);
    }

    /// Adds a closure as source.
    pub fn register_fn(&self, collect: impl Fn(&mut Page) + Send + Sync + 'static) {
        self.register(Arc::new(FnSource(collect)));
    }

    /// Registers a counter without labels; call once per name.
    pub fn counter(&self, name: &'static str, help: &'static str) -> Arc<SharedCounter> {
        let cell = Arc::new(SharedCounter::default());
        let shown = cell.clone();
        self.register_fn(move |page| page.counter(name, help).sample((), shown.value()));
        cell
    }

    /// Registers a gauge without labels; call once per name.
    pub fn gauge(&self, name: &'static str, help: &'static str) -> Arc<SharedGauge> {
        let cell = Arc::new(SharedGauge::default());
        let shown = cell.clone();
        self.register_fn(move |page| page.gauge(name, help).sample((), shown.value()));
        cell
    }

    /// Registers a histogram without labels over ascending upper `bounds`; call once per name.
    pub fn histogram(
        &self,
        name: &'static str,
        help: &'static str,
        bounds: &'static [f64],
    ) -> Arc<SharedHistogram> {
        let cell = Arc::new(SharedHistogram::new(bounds));
        let shown = cell.clone();
        self.register_fn(move |page| shown.write((), &mut page.histogram(name, help)));
        cell
    }

    /// Registers a counter with labels; call once per name.
    pub fn counters<const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
    ) -> Arc<Vector<SharedCounter, N>> {
        let vector = Arc::new(Vector::new(labels, SharedCounter::default));
        let shown = vector.clone();
        self.register_fn(move |page| {
            let mut family = page.counter(name, help);
            shown.each(|labels, cell| family.sample(labels, cell.value()));
        });
        vector
    }

    /// Registers a gauge with labels; call once per name.
    pub fn gauges<const N: usize>(
        &self,
        name: &'static str,
        help: &'static str,
        labels: [&'static str; N],
    ) -> Arc<Vector<SharedGauge, N>> {
        let vector = Arc::new(Vector::new(labels, SharedGauge::default));
        let shown = vector.clone();
        self.register_fn(move |page| {
            let mut family = page.gauge(name, help);
            shown.each(|labels, cell| family.sample(labels, cell.value()));
        });
        vector
    }

    /// Renders the page in text format 0.0.4; its content type is [`page::CONTENT_TYPE`].
    pub fn render(&self) -> String {
        self.page().finish()
    }

    /// The page as it is now, to which more may be added.
    pub fn page(&self) -> Page {
        // The list is copied out: a source may take long, and registering must not wait for a scrape.
        let sources = self.sources.lock().clone();
        let mut page = Page::new();
        for source in sources {
            source.collect(&mut page);
        }
        page
    }
}

#[cfg(test)]
mod tests;
