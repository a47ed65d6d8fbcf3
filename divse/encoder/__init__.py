"""DivSE: a trained model with everything it needs to embed pictures and captions as sets.

A model folder stands on its own. It holds config.json, model.safetensors (what training changed),
backbones.safetensors (weights of frozen encoders, if any), README.md (the model card), and
vocabulary.json or text_encoder/ and image_encoder/ (configurations of transformers encoders, with
the tokenizer). The same folder is what the Hugging Face hub holds.
"""

from divse.encoder.build import build_model, build_tokenizer, load_tokenizer, vocabulary_size
from divse.encoder.encoder import DivSE

__all__ = ["DivSE", "build_model", "build_tokenizer", "load_tokenizer", "vocabulary_size"]
