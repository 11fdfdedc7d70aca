"""Logs as other programs leave them: compressed, with a byte order mark, with blank lines."""

import gzip

import numpy as np
import pytest

from robust_jax.analysis import attacked, found_logs
from robust_jax.certification import log
from robust_jax.errors import UserError

TABLE = ('idx\tlabel\tpredict\tradius\tcorrect\ttime\n'
         '0\t3\t3\t0.5\t1\t0:00:01.5\n20\t1\t2\t0.25\t0\t0:00:02\n')
LINES = ('{"header":{"settings":{"sigma":0.5},"environment":{}}}\n'
         '{"idx":0,"label":3,"predict":3,"radius":0.5,"correct":1,"time":1.5}\n'
         '{"idx":20,"label":1,"predict":2,"radius":0.25,"correct":0,"time":2}\n')
ATTACK = ('{"header":{"epsilons":[0.5]}}\n{"idx":0,"label":3,"clean":3,"adversarial":[3]}\n'
          '{"idx":20,"label":1,"clean":2,"adversarial":[2]}\n')
KINDS = {'certify.tsv': (TABLE, log.read), 'certify.jsonl': (LINES, log.read),
         'attack.jsonl': (ATTACK, attacked.read)}
FORMS = {
    'blank lines at the end': lambda text: (text + '\n \n\t\n').encode(),
    'white space at the ends': lambda text: text.replace('\n', ' \t\n').encode(),
    'byte order mark': lambda text: text.encode('utf-8-sig'),
    'CRLF': lambda text: text.replace('\n', '\r\n').encode(),
    'compressed': lambda text: gzip.compress(text.encode()),
    'no newline at the end': lambda text: text.rstrip().encode(),
}


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', KINDS)
def test_a_log_in_another_form_is_the_same_log(name, form, tmp_path):
  text, read = KINDS[name]
  path, other = tmp_path / name, tmp_path / f'other{name}{".gz" * (form == "compressed")}'
  path.write_text(text)
  other.write_bytes(FORMS[form](text))
  for expected, found in zip(read(path), read(other)):
    np.testing.assert_array_equal(found, expected)
  if read is log.read:
    assert not log.is_cut_off(other)
    assert list(found_logs.load(other).log.idx) == [0, 20]
    (tmp_path / 'folder').mkdir()
    other.rename(tmp_path / 'folder' / other.name)
    assert len(found_logs.collect([tmp_path / 'folder'])[0]) == 1


@pytest.mark.parametrize('name', KINDS)
@pytest.mark.parametrize('content, message', [
    (b'hello', "got 'hello'"), (b'\x00\xff\xfe', 'got '),
    # Without a time in it, which would give the test another name in each process.
    (gzip.compress(b'hello', mtime=0), "got 'hello'"),
    (gzip.compress(b'hello', mtime=0)[:-3], 'ended'),
])
def test_what_is_no_log_is_refused_by_name(name, content, message, tmp_path):
  path = tmp_path / name
  path.write_bytes(content)
  with pytest.raises(UserError, match=f'{name}.*{message}'):
    KINDS[name][1](path)


def test_a_compressed_log_of_a_workdir_is_found_once(tmp_path):
  for name, text in (('config.json', '{}'), ('stages.json', '{}'), ('certify.tsv', TABLE)):
    (tmp_path / name).write_text(text)
  (tmp_path / 'certify.jsonl.gz').write_bytes(gzip.compress(LINES.encode()))
  assert len(found_logs.collect([tmp_path])[0]) == 1
