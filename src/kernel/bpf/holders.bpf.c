// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * Who has which socket open, and who keeps a namespace: a walk over all open files of all processes inside the kernel, which
 * needs no look into /proc/PID/fd. An object of its own, so that a command that wants nothing else loads nothing else.
 *
 * And what nothing else tells of sockets: whether they let others bind beside them. Walks over the sockets of the network
 * namespace of whoever asks find those that no process has open too (TIME_WAIT); bound TCP sockets that neither listen nor are
 * connected are found as open files only. Before Linux 6.8 nothing else tells of those at all.
 */
#include "kernel.h"
#include "event.h"

static __always_inline unsigned int options_of(struct sock_common *common)
{
	unsigned int flags = 0;

	if (BPF_CORE_READ_BITFIELD_PROBED(common, skc_reuse))
		flags |= FLAG_REUSEADDR;
	if (BPF_CORE_READ_BITFIELD_PROBED(common, skc_reuseport))
		flags |= FLAG_REUSEPORT;
	if (BPF_CORE_READ_BITFIELD_PROBED(common, skc_ipv6only))
		flags |= FLAG_V6ONLY;
	return flags;
}

static __always_inline void tell_options(struct seq_file *seq, struct sock_common *common)
{
	struct socket_options options = {
		.cookie = BPF_CORE_READ(common, skc_cookie.counter),
		.flags = options_of(common),
	};

	bpf_seq_write(seq, &options, sizeof(options));
}

SEC("iter/tcp")
int tcp_options(struct bpf_iter__tcp *ctx)
{
	struct sock_common *common = ctx->sk_common;

	if (common)
		tell_options(ctx->meta->seq, common);
	return 0;
}

SEC("iter/udp")
int udp_options(struct bpf_iter__udp *ctx)
{
	struct udp_sock *socket = ctx->udp_sk;

	if (socket)
		tell_options(ctx->meta->seq, &socket->inet.sk.__sk_common);
	return 0;
}

/* The socket of IPv4 or IPv6 behind a file, or none. */
static __always_inline struct sock *socket_of(struct file *file)
{
	struct socket *socket;
	struct sock *sk;
	unsigned short family;

	if ((file->f_inode->i_mode & S_IFMT) != S_IFSOCK)
		return 0;
	/* Behind a void pointer the verifier allows probes only. */
	socket = file->private_data;
	sk = BPF_CORE_READ(socket, sk);
	family = BPF_CORE_READ(sk, __sk_common.skc_family);
	return family == AF_INET || family == AF_INET6 ? sk : 0;
}

SEC("iter/task_file")
int bound_files(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct bound_socket found = {};
	unsigned short protocol;
	struct sock *sk;

	if (!task || !file)
		return 0;
	sk = socket_of(file);
	if (!sk || BPF_CORE_READ(sk, __sk_common.skc_state) != TCP_CLOSE)
		return 0;
	found.port = BPF_CORE_READ(sk, __sk_common.skc_num);
	protocol = BPF_CORE_READ(sk, sk_protocol);
	if (!found.port || (protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP))
		return 0;
	found.family = BPF_CORE_READ(sk, __sk_common.skc_family);
	if (found.family == AF_INET)
		BPF_CORE_READ_INTO((unsigned int *)found.address, sk, __sk_common.skc_rcv_saddr);
	else
		BPF_CORE_READ_INTO((struct in6_addr___k *)found.address, sk, __sk_common.skc_v6_rcv_saddr);
	found.cookie = BPF_CORE_READ(sk, __sk_common.skc_cookie.counter);
	found.netns = BPF_CORE_READ(sk, __sk_common.skc_net.net, ns.inum);
	found.ifindex = BPF_CORE_READ(sk, __sk_common.skc_bound_dev_if);
	found.flags = options_of(&sk->__sk_common);
	found.inode = file->f_inode->i_ino;
	found.uid = file->f_inode->i_uid.val;
	found.pid = task->tgid;
	found.fd = ctx->fd;
	bpf_seq_write(ctx->meta->seq, &found, sizeof(found));
	return 0;
}

SEC("iter/task_file")
int open_files(struct bpf_iter__task_file *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct open_file found = {};
	struct sock *sk;

	if (!task || !file)
		return 0;
	sk = socket_of(file);
	if (sk) {
		found.kind = FILE_SOCKET;
		found.flags = options_of(&sk->__sk_common);
	} else if (file->f_inode->i_sb->s_magic == NSFS_MAGIC) {
		found.kind = FILE_NAMESPACE;
	} else {
		return 0;
	}
	found.pid = task->tgid;
	found.fd = ctx->fd;
	found.inode = file->f_inode->i_ino;
	bpf_seq_write(ctx->meta->seq, &found, sizeof(found));
	return 0;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
