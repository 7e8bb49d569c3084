//! An image is the cask as it was, whatever happens while it is copied.

use super::*;

/// Copies an image in pieces, as who copies one through a mount does: holes are left out.
fn copy<D: Device>(image: &Image<D>, piece: u64, mut between: impl FnMut()) -> Result<Vec<u8>> {
    let mut bytes = vec![0; image.bytes() as usize];
    let mut at = 0;
    while let Some(start) = image.seek(at, true) {
        let end = image.seek(start, false).unwrap();
        assert!(start < end && end <= image.bytes());
        at = start;
        while at < end {
            let next = (at + piece).min(end);
            image.read_at(at, &mut bytes[at as usize..next as usize])?;
            at = next;
            between();
        }
    }
    Ok(bytes)
}

#[test]
fn an_image_is_what_the_cask_was_whatever_is_done_meanwhile() {
    let mut seen = 0;
    for seed in 0..40 {
        let mut options = tiny(512, 300 + 10 * seed, 16);
        if seed % 3 == 0 {
            options.blocks = None;
        }
        let (_, cask) = fresh(&options);
        let cask = Arc::new(cask);
        let mut rng = Rng(seed);
        let (mut model, mut numbers) = (Model::default(), Vec::new());
        let mut go_on = |model: &mut Model, rng: &mut Rng, steps| {
            for _ in 0..steps {
                match step(&cask, model, rng, &mut numbers) {
                    Ok(_) | Err(Error::NoSpace) => {}
                    Err(error) => panic!("seed {seed}: {error}"),
                }
            }
        };
        go_on(&mut model, &mut rng, 60);
        let before = model.clone();
        let image = cask.image().unwrap();
        let mut after = Rng(seed + 1_000);
        let copied = copy(&image, 1500, || {
            go_on(&mut model, &mut after, 3);
            if after.below(4) == 0 {
                cask.checkpoint().unwrap();
            }
        });
        match copied {
            Ok(bytes) => {
                let copy = Cask::open(MemoryDevice::from_bytes(bytes), spaced()).unwrap();
                assert!(copy.read_only().is_none());
                compare(&copy, &before);
                seen += 1;
            }
            // Given up for want of space.
            Err(Error::Stale) => {}
            Err(error) => panic!("seed {seed}: {error}"),
        }
        compare(&cask, &model);
        drop(image);
        cask.close().unwrap();
    }
    assert!(seen > 15, "{seen} of 40 images were copied to the end");
}

#[test]
fn an_image_gives_way_to_who_needs_the_room() {
    let (_, cask) = fresh(&tiny(512, 400, 16));
    let cask = Arc::new(cask);
    let numbers = contents(&cask, 12, 5_000);
    let image = cask.image().unwrap();
    drop_all(&cask, &numbers);
    // What was given up is in the image; but it is wanted.
    let again = contents(&cask, 12, 5_000);
    assert!(matches!(image.read_at(0, &mut [0; 512]), Err(Error::Stale)));
    for number in again {
        let mut found = vec![0; 5_000];
        cask.read_content(number, 0, &mut found).unwrap();
        assert!(found.iter().any(|byte| *byte != 0));
    }
}
