"""The configuration files of a bed, as text."""

from __future__ import annotations

from slurm.bed.settings import HEAD, HEAD_ADDRESS, BedSettings, Node

GPU_DEVICES = "/etc/slurm/gpus"


def hosts(settings: BedSettings, own: Node | None = None) -> str:
    """/etc/hosts of a node, or of the head."""
    lines = ["127.0.0.1 localhost", f"{HEAD_ADDRESS} {HEAD}"]
    for node in settings.nodes:
        loopback = settings.loopback_hostname and node == own
        lines.append(f"{'127.0.1.1' if loopback else node.address} {node.name}")
    return "\n".join(lines) + "\n"


def slurm_conf(settings: BedSettings) -> str:
    """slurm.conf: one for the controller and all nodes. Times are short, so that faults are seen within seconds."""
    node = f"CPUs={settings.num_cpus_per_node} RealMemory={settings.memory_mib_per_node}"
    gpus = f" Gres=gpu:{settings.num_gpus_per_node}" if settings.num_gpus_per_node else ""
    preempted = f"PriorityTier=1 PreemptMode=REQUEUE GraceTime={settings.preemption_grace_s}"
    lines = [
        "ClusterName=bed",
        f"SlurmctldHost={HEAD}({HEAD_ADDRESS})",
        "SlurmUser=root",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        "AuthInfo=cred_expire=5",  # a requeued job waits this long; 120 s otherwise
        "StateSaveLocation=/run/slurmctld",
        "SlurmctldPidFile=/run/slurmctld.pid",
        "SlurmdPidFile=/run/slurmd.pid",
        "SlurmdSpoolDir=/run/slurmd",
        "SlurmctldDebug=info",
        "SlurmdDebug=info",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/none",
        "MpiDefault=none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        "DefMemPerCPU=500",
        "GresTypes=gpu",
        "SlurmdParameters=config_overrides",  # believe what is below, not the hardware
        "ReturnToService=2",
        "JobRequeue=1",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        "MaxArraySize=1001",
        "MinJobAge=3600",  # scontrol shows jobs that ended
        "KillWait=5",
        "SlurmdTimeout=10",
        "SlurmctldTimeout=10",
        "BatchStartTimeout=10",
        "CompleteWait=0",
        "TCPTimeout=2",
        "UnkillableStepTimeout=20",
        "SchedulerType=sched/backfill",
        "SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1",
        *settings.slurm_conf,
        *(f"NodeName={each.name} NodeAddr={each.address} {node}{gpus} State=UNKNOWN" for each in settings.nodes),
        f"PartitionName=main Nodes=ALL Default=YES MaxTime=60 DefaultTime=10 {preempted}",
        "PartitionName=high Nodes=ALL MaxTime=60 DefaultTime=10 PriorityTier=10 PreemptMode=OFF",
        f"PartitionName=short Nodes=ALL MaxTime=1 DefaultTime=1 {preempted}",
        f"PartitionName=single Nodes={settings.nodes[0].name} MaxTime=60 DefaultTime=10 {preempted}",
    ]
    return "\n".join(lines) + "\n"


def gres_conf(settings: BedSettings) -> str:
    """gres.conf: Slurm wants a character device for each GPU, and looks at nothing else of it."""
    last = settings.num_gpus_per_node - 1
    return f"Name=gpu File={GPU_DEVICES}/nvidia[0-{last}]\n" if last >= 0 else ""


SSHD_CONFIG = """\
Port 22
HostKey /etc/ssh/ssh_host_ed25519_key
AuthorizedKeysFile /etc/ssh/authorized_keys
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
MaxStartups 100
PrintMotd no
AcceptEnv LANG LC_*
Subsystem sftp internal-sftp
"""

SSH_CONFIG = """\
Host *
  IdentityFile /etc/ssh/id_ed25519
  GlobalKnownHostsFile /etc/ssh/ssh_known_hosts
  StrictHostKeyChecking yes
  BatchMode yes
  ConnectTimeout 5
"""
