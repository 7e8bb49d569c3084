//! Walking the items of one version of the tree in order.

use std::sync::Arc;

use super::{Node, Root, Tree, top_level};
use crate::device::Device;
use crate::error::Result;
use crate::format::Key;

/// Yields the items of a range in ascending order. It holds one page a level.
pub struct Cursor<'t, D> {
    tree: &'t Tree<D>,
    root: Root,
    from: Key,
    to: Key,
    started: bool,
    /// The path to the next item: page and index, from the root down.
    path: Vec<(Arc<Node>, usize)>,
}

impl<'t, D: Device> Cursor<'t, D> {
    pub(super) fn new(tree: &'t Tree<D>, root: Root, from: Key, to: Key) -> Self {
        Self {
            tree,
            root,
            from,
            to,
            started: false,
            path: Vec::new(),
        }
    }

    /// Makes it a walk from `from` to `to`. What stands in the leaf where it is now is found without a way
    /// down from the root.
    pub fn go_to(&mut self, from: Key, to: Key) {
        (self.from, self.to) = (from, to);
        let in_leaf = self.path.len() as u32 == self.root.height;
        if let Some((leaf, index)) = self.path.last_mut().filter(|_| in_leaf)
            && leaf.key(0).is_some_and(|first| first <= from)
            && leaf
                .key(leaf.len().saturating_sub(1))
                .is_some_and(|last| from <= last)
        {
            *index = leaf.lower_bound(&from);
        } else {
            self.path.clear();
            self.started = false;
        }
    }

    /// Goes down from the last page of the path to the leaf that may hold `from`.
    fn descend(&mut self) -> Result<()> {
        if self.path.is_empty() {
            let Some(ptr) = self.root.page else {
                return Ok(());
            };
            let page = self.tree.page(ptr, top_level(&self.root)?)?;
            self.push(page);
        }
        while let Some((page, index)) = self.path.last() {
            let depth = self.path.len() as u32;
            if depth >= self.root.height {
                break;
            }
            let Some((_, child)) = page.child(*index) else {
                break;
            };
            let page = self
                .tree
                .page(child, (self.root.height - 1 - depth) as u8)?;
            self.push(page);
        }
        Ok(())
    }

    fn push(&mut self, page: Arc<Node>) {
        let leaf = self.path.len() as u32 + 1 >= self.root.height;
        let index = match (self.started, leaf) {
            (true, _) => 0,
            (false, true) => page.lower_bound(&self.from),
            (false, false) => page.child_for(&self.from),
        };
        self.path.push((page, index));
    }

    /// The next item, `None` after the last.
    ///
    /// # Errors
    /// As [`Tree::page`].
    #[expect(
        clippy::should_implement_trait,
        reason = "the item borrows from the cursor"
    )]
    pub fn next(&mut self) -> Result<Option<(Key, &[u8])>> {
        if !self.started {
            self.descend()?;
            self.started = true;
        }
        // Leave pages that are used up, then go down again.
        while let Some((page, index)) = self.path.last() {
            let leaf = self.path.len() as u32 == self.root.height;
            if *index < page.len() {
                if leaf {
                    break;
                }
                self.descend()?;
            } else {
                self.path.pop();
                if let Some((_, index)) = self.path.last_mut() {
                    *index += 1;
                }
            }
        }
        let Some((page, index)) = self.path.last_mut() else {
            return Ok(None);
        };
        let at = *index;
        *index += 1;
        Ok(page.cell(at).filter(|(key, _)| *key <= self.to))
    }
}
