"""absl flags from the declared settings, sectioned --help, and the frame every script runs in."""

from __future__ import annotations

import copy
import errno
import os
import re
import shlex
import sys
import textwrap
from collections.abc import Callable

from absl import app, flags, logging

from transformer import hardware, plugin, runs, spec
from transformer.config import PRESETS, SECTIONS, SETTINGS, Config
from transformer.errors import UserError, nearest

FLAGS = flags.FLAGS
_DEFINE = {
  'int': flags.DEFINE_integer,
  'float': flags.DEFINE_float,
  'str': flags.DEFINE_string,
  'bool': flags.DEFINE_boolean,
}
_DISK = (
  *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR),
  *(errno.EISDIR, errno.ENAMETOOLONG, errno.EIO, errno.EEXIST),
)
_base = Config()


def define(**defaults: object) -> None:
  """Defines a flag for every setting, and --preset.

  defaults: this script's own, by flag name with dots; flags and presets override them.
  """
  global _base
  _base = Config().replace(**defaults)
  for section in ('script', *SECTIONS):
    define_section(section)
  flags.DEFINE_string('preset', '', f'named settings: {", ".join(PRESETS)}', module_name='script')


def define_section(section: str) -> None:
  """Defines the flags of one section of settings; 'script' are those of none."""
  for path, declared in SETTINGS.items():
    if _section(path) == section:
      kind = _DEFINE[declared.type]
      kind(path, _base.get(path), declared.metadata['help'], module_name=section)


def script_flag(kind: str, name: str, default: object, help: str) -> flags.FlagHolder:
  """Defines a flag of the script itself. kind: 'int', 'float', 'str' or 'bool'."""
  return _DEFINE[kind](name, default, help, module_name='script')


def config() -> Config:
  """The asked-for config: script defaults, then --preset, then the flags given."""
  asked = _base
  if FLAGS.preset:
    if FLAGS.preset not in PRESETS:
      raise UserError(f'--preset={FLAGS.preset}: no such preset{nearest(FLAGS.preset, PRESETS)}')
    asked = asked.replace(**PRESETS[FLAGS.preset])
  changes = given()
  if changes.get('plugin'):
    changes['plugin'] = plugin.load(changes['plugin'])
  return asked.replace(**changes)


def asked() -> Config:
  """The asked-for config of what is run in --workdir.

  --model.dtype=auto is what it came to when that folder was begun: an experiment goes on in one
  type on whatever machine it is continued.
  """
  found = config()
  if found.model.dtype != 'auto':
    return found
  dtype = runs.resolved(FLAGS.workdir).get('model', {}).get('dtype') or hardware.fast_dtype()
  return found.replace(**{'model.dtype': dtype})


def given() -> dict[str, object]:
  """The settings that the command line names, and their values."""
  return {p: FLAGS[p].value for p in SETTINGS if p in FLAGS and FLAGS[p].present}


def varied(text: str, flag: str) -> Config:
  """The asked-for config with further flags, written as on a command line, on top.

  flag: the one whose value they are. Raises UserError naming it for what is no setting.
  """
  own = copy.deepcopy(FLAGS)
  try:
    rest = own(['', *shlex.split(text)])
  except (flags.Error, ValueError) as e:
    raise UserError(f'--{flag}={text}: {e}'.replace('\n', ' ')) from None
  changed = {p: own[p].value for p in SETTINGS if own[p].present > FLAGS[p].present}
  if rest[1:] or not changed:
    raise UserError(f"--{flag}={text}: should be settings, as in '--ffn.activation=relu'")
  return config().replace(**changed)


def run(
  main: Callable[[], int | None], define: Callable[[list[str]], None] = lambda argv: None
) -> None:
  """Parses flags, runs `main` and exits with its status; mistakes end in one line and status 2.

  define: defines flags that depend on the command line, which it is given.
  """

  def parse(argv: list[str]) -> list[str]:
    _guard(lambda: define(argv))
    return _parse(argv)

  app.run(lambda argv: _guard(main), flags_parser=parse)


def _section(path: str) -> str:
  return path.rpartition('.')[0] or 'script'


def _parse(argv: list[str]) -> list[str]:
  if any(a in ('--help', '-h', '-help') for a in argv[1:]):
    sys.exit(_guard(lambda: _print_help(argv)))
  try:
    rest = FLAGS(argv)
  except flags.UnrecognizedFlagError as e:
    _fail(f'--{e.flagname}: no such flag{nearest(e.flagname, FLAGS)}')
  except flags.IllegalFlagValueError as e:
    _fail(_wrong_type(str(e)))
  except flags.Error as e:
    _fail(str(e).replace('\n', ' '))
  if len(rest) > 1:
    _fail(f'{rest[1]!r} is not a flag; settings are given as --name=value')
  logging.set_verbosity(logging.WARNING)  # jax tells of every backend it does not find
  return rest


def _wrong_type(message: str) -> str:
  """absl's words for a value that is not of its flag's type, in ours."""
  found = re.match(r'flag --([\w.]+)=(.*?): ', message, re.DOTALL)
  if not found:
    return message.replace('\n', ' ')
  name, value = found.groups()
  kind = {'int': 'a whole number', 'float': 'a number'}.get(
    FLAGS[name].flag_type(), 'true or false'
  )
  return f'--{name}={value}: should be {kind}'


def _guard(main: Callable[[], int | None]) -> int:
  try:
    status = main() or 0
    sys.stdout.flush()  # here, where a closed pipe is seen to
    return status
  except UserError as e:
    _fail(str(e))
  except KeyboardInterrupt:
    print('interrupted; the same command continues', file=sys.stderr)
    return 130
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  except OSError as e:
    if e.errno not in _DISK:
      raise
    _fail(f'{e.filename or "file system"}: {e.strerror}')
  except Exception as e:
    if os.strerror(errno.ENOSPC) not in str(e):
      raise
    _fail(f'{os.strerror(errno.ENOSPC)}: {str(e).splitlines()[0][:200]}')  # as a library wrapped it


def _fail(message: str) -> None:
  print(f'error: {message}', file=sys.stderr)
  sys.exit(2)


def _print_help(argv: list[str]) -> None:
  for argument in argv:
    if argument.lstrip('-').startswith('plugin='):
      plugin.load(argument.partition('=')[2])
  doc = sys.modules['__main__'].__doc__ or ''
  print(textwrap.dedent(doc).strip(), '\n')
  by_section = FLAGS.flags_by_module_dict()
  for section in ['script', *SECTIONS]:
    if section not in by_section:
      continue
    print(f'{section}: {SECTIONS.get(section, "what to run, and where").splitlines()[0]}')
    for flag in sorted(by_section[section], key=_declared_order):
      print(_describe(flag))
    print()
  print('Variants are written name, name(argument=value) or name:text. Also: --helpfull (absl).')


def _declared_order(flag: flags.Flag) -> int:
  return list(SETTINGS).index(flag.name) if flag.name in SETTINGS else -1


def _describe(flag: flags.Flag) -> str:
  """A flag with its default, its help, and its variants or choices."""
  head = f'  --{flag.name}={flag.default!s}'
  lines = textwrap.wrap(flag.help, 96 - 34) or ['']
  declared = SETTINGS.get(flag.name)
  if declared and declared.metadata['choices']:
    lines += textwrap.wrap(' | '.join(declared.metadata['choices']), 60)
  if flag.name in spec.slots():
    options = ' | '.join(spec.usage(d) for d in spec.variants(flag.name).values())
    lines += textwrap.wrap(options, 60, break_long_words=False)
  start = [head.ljust(34)] if len(head) < 34 else [head + '\n' + ' ' * 34]
  return start[0] + ('\n' + ' ' * 34).join(lines)
