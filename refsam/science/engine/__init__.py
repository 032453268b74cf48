"""micro-sam's training step in a fraction of its memory and time, with the same loss and the same gradients.

Each saving is one file, has one flag, is exact, and works with all others:

- `masks`: the two resizings of every mask as one linear map;
- `attention`: the encoder's relative positions inside a fused attention kernel (`train.attention`);
- `checkpointing`: the encoder's blocks computed again in the backward (`train.checkpoint_encoder`);
- `decoder`: the segmentation decoder, upsampling late and computed again (`train.checkpoint_decoder`);
- `prompts`: masks and targets between sub-iterations in one byte per pixel;
- `cache`: a frozen encoder's embeddings kept (`train.embedding_cache`), of patches that come again
  (`train.patch_pool`).

Three more are in other modules: backward after every sub-iteration, and chunks of objects within it
(`train.object_chunk`), in `refsam.science.training.step`; `refsam.science.training.optimizers`; and the
samples' workers.

`setup` chooses what is `auto` and puts them together. `train.engine=micro_sam` leaves all of it out.
"""
