"""Reads questions with their answers, which come without passages.

  SPLIT.jsonl[.gz], SPLIT.json[.gz]   rows, one per line or in one array, of
      NQ-open and EfficientQA   {"question": str, "answer": [str]}
      EntityQuestions           {"question": str, "answers": [str]}
      TriviaQA                  {"Data": [{"QuestionId": str, "Question": str,
                                "Answer": {"Value": str, "Aliases": [str]}}]}
      its rows on the hub       {"question_id": str, "question": str,
                                "answer": {"value": str, "aliases": [str]}}

"query" or "text" may stand for "question". The id is "_id", "id" or
"question_id", else a hash of the text. "passages" or "positive_document_ids"
may list the ids of passages that are relevant; most such sets have none. The
path is a folder of such files or one of them. The passages are those of
corpus.jsonl beside the files, or of data.corpus.

Sources: Lee et al., ACL 2019; Min et al., 2021 (EfficientQA); Sciavolino et
al., EMNLP 2021; Joshi et al., ACL 2017.
"""

from retrieval_jax.data.readers import answers
from retrieval_jax.data.readers import examples
from retrieval_jax.data.readers import lines

_QUESTION = ('question', 'Question', 'query', 'text')
_ID = ('_id', 'id', 'question_id', 'QuestionId')
_POSITIVES = ('positive_document_ids', 'passages')


def make_reader(path: str) -> examples.ExamplesReader:
  """Returns the reader of a folder or of a file."""
  return examples.ExamplesReader(
      examples.FileRows(path, 'questions', inside='Data'), parse)


def parse(where: str, row: examples.Row) -> examples.Example:
  """Returns the Example of a question, whose passages have no text."""
  question = lines.string(where, row, *_QUESTION)
  name = lines.first(row, _POSITIVES)
  positives = [
      examples.Passage(lines.identifier(where, {name: one}, name), None)
      for one in examples.listed(where, row, name)]
  return examples.Example(
      examples.content_id(question) if row.get(lines.first(row, _ID)) is None
      else lines.identifier(where, row, *_ID),
      question, positives, (), answers.read(where, row))
