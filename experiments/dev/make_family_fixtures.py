"""Writes tiny random models of every family, with what the reference gives.

For development only; needs CPU torch and sentence-transformers, and runs
without this package:

  python experiments/dev/make_family_fixtures.py tests/models/families

OUT/NAME is a folder as sentence-transformers 6 writes it, with `reference.npz`:
`texts` [n], `tokens` [n, L] int32 and `hidden` [n, L, 32] of the texts as they
are, `queries` and `targets` [n, D] float32 with the folder's prompts, and for
bert `pooled_MODE` [n, 32] of `hidden`. All weights are noise, norms' too. Also
`relative_buckets.npz`, the reference's buckets of distances. With names of
cases behind OUT these alone are written, and the rest of OUT stays.
"""

import os
import shutil
import sys

import numpy as np
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules.dense import Dense
from sentence_transformers.base.modules.normalize import Normalize
from sentence_transformers.base.modules.transformer import Transformer
from sentence_transformers.sentence_transformer.modules import static_embedding
from sentence_transformers.sentence_transformer.modules.pooling import Pooling
import tokenizers
from tokenizers import models
from tokenizers import normalizers
from tokenizers import pre_tokenizers
from tokenizers import processors
from tokenizers import trainers
import torch
import transformers
from transformers.models.t5 import modeling_t5

TEXTS = (
    'dog',
    'A dog is a descendant of the wolf.',
    'Ünïcödé and emoji 🙂 are tokens too, run!',
    'retrieval of passages from a large corpus by dense vectors, trained with '
    'hard negatives that come from remembered, and therefore stale, embeddings '
    'of all targets; the longest of these texts, which is cut',
    '',
)
LENGTH = 48
VOCABULARY = 120
COMMON = {'hidden_size': 32, 'num_hidden_layers': 2, 'num_attention_heads': 4,
          'intermediate_size': 40, 'max_position_embeddings': 64}
T5 = {'d_model': 32, 'd_kv': 6, 'd_ff': 40, 'num_layers': 2, 'num_heads': 4,
      'num_decoder_layers': 1}
DISTILBERT = {'dim': 32, 'n_layers': 2, 'n_heads': 4, 'hidden_dim': 40,
              'max_position_embeddings': 64}

MODERN = {**COMMON, 'num_hidden_layers': 3}  # local windows are below LENGTH
DECODER = {**MODERN, 'num_hidden_layers': 2, 'num_key_value_heads': 2}

# name -> (kind of tokenizer, config, modules after Transformer, prompts)
CASES = {
    'bert': ('bert', transformers.BertConfig(**COMMON), [
        Pooling(32, 'mean'), Normalize()], {}),
    'distilbert': ('bert', transformers.DistilBertConfig(**DISTILBERT), [
        Pooling(32, 'cls'), Dense(32, 12, activation_function=torch.nn.Tanh())],
        {}),
    'roberta': ('roberta', transformers.RobertaConfig(
        **COMMON, type_vocab_size=1), [Pooling(32, 'mean'), Normalize()],
        {'query': 'query: ', 'document': 'passage: '}),
    'mpnet': ('mpnet', transformers.MPNetConfig(**COMMON), [
        Pooling(32, 'mean'), Normalize()], {'query': 'find '}),
    't5': ('t5', transformers.T5Config(**T5), [
        Pooling(32, 'mean'),
        Dense(32, 16, bias=False, activation_function=torch.nn.Identity()),
        Normalize()], {}),
    't5_gated': ('t5', transformers.T5Config(
        **T5, feed_forward_proj='gated-gelu'), [Pooling(32, 'lasttoken')], {}),
    'modernbert': ('bert', transformers.ModernBertConfig(
        **MODERN, local_attention=12), [Pooling(32, 'cls'), Normalize()],
        {'query': 'search_query: '}),
    'nomic_bert': ('bert', transformers.NomicBertConfig(**COMMON), [
        Pooling(32, 'mean'), Normalize()], {}),
    'gte': ('bert', transformers.GteConfig(**COMMON), [
        Pooling(32, 'cls'), Normalize()], {}),
    'gemma3_text': ('end', transformers.Gemma3TextConfig(
        **DECODER, head_dim=10, sliding_window=12, query_pre_attn_scalar=7,
        use_bidirectional_attention=True,
        layer_types=['sliding_attention', 'full_attention']), [
            Pooling(32, 'mean'),
            Dense(32, 48, bias=False, activation_function=torch.nn.Identity()),
            Dense(48, 24, bias=False, activation_function=torch.nn.Identity()),
            Normalize()],
        {'query': 'task: search result | query: ',
         'document': 'title: none | text: '}),
    'gemma3_causal': ('end', transformers.Gemma3TextConfig(
        **DECODER, head_dim=10, sliding_window=6, query_pre_attn_scalar=7,
        layer_types=['sliding_attention', 'full_attention']), [
            Pooling(32, 'lasttoken'), Normalize()], {}),
    'qwen3': ('end', transformers.Qwen3Config(**DECODER, head_dim=10), [
        Pooling(32, 'lasttoken'), Normalize()],
        {'query': 'Instruct: find it\nQuery:'}),
    'qwen2': ('end', transformers.Qwen2Config(**DECODER), [
        Pooling(32, 'lasttoken')], {}),
    'llama': ('end', transformers.LlamaConfig(
        **DECODER, rope_theta=500., attention_bias=True, mlp_bias=True), [
            Pooling(32, 'mean')], {}),
    'mistral': ('end', transformers.MistralConfig(
        **DECODER, sliding_window=6), [Pooling(32, 'lasttoken')], {}),
    'eurobert': ('end', transformers.EuroBertConfig(**DECODER), [
        Pooling(32, 'mean')], {}),
    'static': ('bert', None, [Normalize()], {'query': 'find '}),
}


def make_tokenizer(kind):
  """Returns a fast tokenizer with the special tokens of a family."""
  special = {'bert': ['[PAD]', '[UNK]', '[CLS]', '[SEP]'],
             'roberta': ['<s>', '<pad>', '</s>', '<unk>'],
             'mpnet': ['<s>', '<pad>', '</s>', '[UNK]'],
             't5': ['<pad>', '</s>', '<unk>'],
             'end': ['<|endoftext|>']}[kind]
  if kind in ('roberta', 'end'):
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
  elif kind == 't5':
    made = tokenizers.Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=VOCABULARY, special_tokens=special, unk_token='<unk>')
  else:
    made = tokenizers.Tokenizer(models.WordPiece(unk_token='[UNK]'))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=VOCABULARY, special_tokens=special)
  made.train_from_iterator(TEXTS * 3, trainer)
  ids = {token: made.token_to_id(token) for token in special}
  if kind == 'bert':
    made.post_processor = processors.TemplateProcessing(
        single='[CLS] $A [SEP]', pair='[CLS] $A [SEP] $B:1 [SEP]:1',
        special_tokens=list(ids.items()))
  elif kind in ('t5', 'end'):  # which pads with the token at the end
    end = {'t5': '</s>', 'end': '<|endoftext|>'}[kind]
    made.post_processor = processors.TemplateProcessing(
        single=f'$A {end}', pair=f'$A {end} $B {end}',
        special_tokens=list(ids.items()))
  else:
    made.post_processor = processors.RobertaProcessing(
        ('</s>', ids['</s>']), ('<s>', ids['<s>']))
  # As MiniLM's file has it: to be overridden.
  made.enable_truncation(16)
  pad = special[1 if kind in ('roberta', 'mpnet') else 0]
  made.enable_padding(pad_token=pad, pad_id=ids[pad])
  return transformers.PreTrainedTokenizerFast(
      tokenizer_object=made, model_max_length=LENGTH,
      pad_token=pad,
      model_input_names=['input_ids', 'attention_mask'])


def make_static(name, folder):
  """Writes the case without an encoder, and nothing of its hidden states."""
  kind, _, modules, prompts = CASES[name]
  SentenceTransformer(
      modules=[static_embedding.StaticEmbedding(
          make_tokenizer(kind), embedding_dim=32), *modules],
      prompts=prompts, device='cpu').save(folder, create_model_card=False)
  model = SentenceTransformer(folder, device='cpu')
  np.savez_compressed(
      os.path.join(folder, 'reference.npz'), texts=np.array(TEXTS),
      queries=model.encode_query(list(TEXTS)),
      targets=model.encode_document(list(TEXTS)))


def make(name, folder):
  """Writes one case."""
  kind, config, modules, prompts = CASES[name]
  tokenizer = make_tokenizer(kind)
  config.vocab_size = len(tokenizer)
  config.pad_token_id = tokenizer.pad_token_id
  plain = folder + '.plain'
  made = (transformers.T5EncoderModel if kind == 't5'
          else transformers.AutoModel.from_config)(config)
  with torch.no_grad():
    for parameter in [*made.parameters(),
                      *(p for m in modules for p in m.parameters())]:
      # T5's matrices are random enough: it does not scale its logits, and
      # larger ones would blow up rounding errors.
      if parameter.ndim == 1 or kind != 't5':
        parameter.add_(.2 * torch.randn_like(parameter))
  if name == 'qwen3':  # as most are published
    made = made.to(torch.bfloat16)
  made.save_pretrained(
      plain, max_shard_size='40KB' if name == 'roberta' else '1GB')
  tokenizer.save_pretrained(plain)
  model = SentenceTransformer(
      modules=[Transformer(plain, max_seq_length=LENGTH), *modules],
      prompts=prompts, device='cpu')
  model.save(folder, create_model_card=False)
  if name == 'roberta':  # The reference joins the shards again.
    os.remove(os.path.join(folder, 'model.safetensors'))
    for file in os.listdir(plain):
      if 'safetensors' in file:
        shutil.copy(os.path.join(plain, file), folder)
  shutil.rmtree(plain)
  model = SentenceTransformer(
      folder, device='cpu', model_kwargs={'dtype': torch.float32})
  features = model[0].preprocess(list(TEXTS))
  with torch.no_grad():
    hidden = model[0](dict(features))['token_embeddings']
  reference = {
      'texts': np.array(TEXTS), 'tokens': features['input_ids'].numpy(),
      'hidden': hidden.numpy(),
      'queries': model.encode_query(list(TEXTS)),
      'targets': model.encode_document(list(TEXTS))}
  if name == 'bert':
    for mode in Pooling.POOLING_MODES:
      reference[f'pooled_{mode}'] = Pooling(32, mode)({
          'token_embeddings': hidden,
          'attention_mask': features['attention_mask']})[
              'sentence_embedding'].numpy()
  np.savez_compressed(os.path.join(folder, 'reference.npz'), **reference)
  print(name, {key: value.shape for key, value in reference.items()})


def main(out, *names):
  torch.manual_seed(0)
  transformers.logging.set_verbosity_error()
  for name in names or CASES:
    shutil.rmtree(os.path.join(out, name), ignore_errors=True)
    (make_static if name == 'static' else make)(name, os.path.join(out, name))
  if names:
    return
  places = torch.arange(200)
  np.savez_compressed(
      os.path.join(out, 'relative_buckets.npz'),
      buckets=modeling_t5.T5Attention._relative_position_bucket(
          places[None] - places[:, None], True, 32, 128).numpy().astype(
              np.uint8))


if __name__ == '__main__':
  main(*sys.argv[1:])
