"""What --help prints; it imports nothing, so that it is there at once."""

TEXT = """\
python -m launch [--config=FILE:NAME] [--config.FIELD=VALUE ...] [--workdir=DIR] [--FLAG=VALUE ...]

Trains a network, attacks and certifies it, and writes a report.

What is run:
  --config=FILE:NAME    experiment of a config file; without it that of an existing workdir, or
                        configs/smoothadv_digits.py
  --config.FIELD=VALUE  changes a field of it; radii and noise are in [0, 1] pixel units: 8/255
  --list                all experiments, a line each
  --help=fields         the fields of the experiment; --help=train: those of a section

Where it is run:
  --workdir=DIR         folder of the run, runs/NAME if not given; what was interrupted goes on
  --devices=N           devices to use, on CPU to simulate; 0, which is the default, for all
  --shard=I/N           the I-th of N parts of the images, from 0 on, attacked and certified by
                        itself; auto, auto/N: as a job array says (docs/runs.md)
  --submit=slurm        each run of --sweep, or shard of --shard=I-J/N, as a job of the cluster;
                        again: what failed or is missing; local: as processes of this machine
  --submit.NAME=VALUE   timeout_min, partition, gpus_per_node, mem_gb and others, of the jobs
  --jobs                the table of what was submitted of DIR, and nothing else
  --coordinator=HOST:PORT --num_processes=N --process_id=I --step_timeout=600
                        the I-th of N processes that compute as one run (docs/pods.md)
  --distributed         the same on a TPU pod, SLURM, Open MPI or Kubernetes, which say all that

Which parts of it:
  --stages=A,B,...      of train, attack, certify, sandwich, bound, verify, check, label,
                        attack_image, export, report; the default is
                        train,attack,certify,sandwich,report, or what the study of a sweep needs
  --redo=A,B,...        of train, attack, certify, sandwich, bound, report, those to run anew; old
                        results move to previous/; not with several processes
  --sweep               every point of the config file's sweep() or, with --config.FIELD=A,B,...,
                        of all combinations, each in its own folder of DIR, and a comparison
  --profile=N           trace N training steps, after the first ten, into WORKDIR/profile

Exit status: 0; 2 after a mistake; 3 if a loss is not finite or training overfits; 4 if
--stages=verify finds a difference; 5 if an attack is inside a certificate or a verified radius;
75 if interrupted (the same command goes on); 1 if a run of a sweep failed.

Examples:
  python -m launch --config=digits:smoothadv --workdir=runs/demo
  python -m launch --config=configs/mnist.py:pgd --workdir=runs/pgd --config.epsilon=0.2
  python -m launch --config=digits:trades --workdir=runs/seeds --sweep --config.seed=0,1,2
"""
