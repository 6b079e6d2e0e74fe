// SPDX-License-Identifier: BSD-3-Clause

package session

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestListing has one certificate of each kind and shows who is offered which, in order.
func TestListing(t *testing.T) {
	t.Parallel()
	host, other := newSigner(t).PublicKey(), newSigner(t).PublicKey()
	r := newRig(t)
	r.family(11, job.PID)
	names := map[uint64]string{}
	add := func(name string, change ...func(*Spec)) {
		names[r.request(spec(append(change, named(name))...)).public.Serial] = name
	}
	// Worst first, so that no order is right by chance.
	add("other", toHosts(other))
	add("once", uses(1))
	add("short", validity(time.Minute))
	add("plain")
	add("long", validity(2*time.Hour))
	add("private", notForwarded, validity(3*time.Hour))
	add("job", inJob, validity(time.Minute))
	add("host once", toHosts(host), uses(1))
	add("host", toHosts(host), validity(time.Minute))
	add("both hosts", toHosts(other, host))
	add("host, job", toHosts(host), inJob)

	show := func(certs []*Certificate) []string {
		all := []string{}
		for _, c := range certs {
			all = append(all, names[c.public.Serial])
		}
		return all
	}
	bound := func(l Lister) Lister { l.HostKey, l.Bound = host.Marshal(), true; return l }
	in := Lister{PID: 11, Alive: alive}
	for _, c := range []struct {
		name string
		l    Lister
		want []string
	}{
		{"bound to the host", bound(Lister{PID: 12, Alive: alive}),
			[]string{"both hosts", "host", "host once", "private", "long", "plain", "short", "once"}},
		{"bound to the host by its certificate", Lister{HostKey: hostCertificate(t, host), Bound: true, PID: 12, Alive: alive},
			[]string{"both hosts", "host", "host once", "private", "long", "plain", "short", "once"}},
		{"bound to the host, in the job", bound(in),
			[]string{"host, job", "both hosts", "host", "host once", "job", "private", "long", "plain", "short", "once"}},
		{"bound to the other", Lister{HostKey: other.Marshal(), Bound: true, PID: 12, Alive: alive},
			[]string{"other", "both hosts", "private", "long", "plain", "short", "once"}},
		{"bound to a third", Lister{HostKey: newSigner(t).PublicKey().Marshal(), Bound: true},
			[]string{"private", "long", "plain", "short", "once"}},
		{"bound to something", Lister{Bound: true, HostKey: []byte("x")}, []string{"private", "long", "plain", "short", "once"}},
		{"bound, destination unknown", Lister{Bound: true}, []string{"private", "long", "plain", "short", "once"}},
		{"forwarded", Lister{Bound: true, Forwarded: true}, []string{"long", "plain", "short", "once"}},
		{"forwarded, unbound", Lister{Forwarded: true}, []string{"long", "plain", "short", "once"}},
		{"forwarded to the host", bound(Lister{Forwarded: true}),
			[]string{"both hosts", "host", "host once", "long", "plain", "short", "once"}},
		{"unbound", Lister{PID: 12, Alive: alive},
			[]string{"private", "long", "plain", "short", "once", "other", "both hosts", "host", "host once"}},
		{"unbound, in the job", in,
			[]string{"job", "private", "long", "plain", "short", "once", "host, job", "other", "both hosts", "host", "host once"}},
		{"process has ended", Lister{PID: 11, Alive: dead},
			[]string{"private", "long", "plain", "short", "once", "other", "both hosts", "host", "host once"}},
	} {
		first := r.For(c.l)
		if got := show(first); !slices.Equal(got, c.want) {
			t.Errorf("%s:\ngot  %q\nwant %q", c.name, got, c.want)
		}
		if again := r.For(c.l); &again[0] != &first[0] || len(again) != len(first) {
			t.Errorf("%s: another slice for the same", c.name)
		}
	}
	all := show(r.Current())
	if want := []string{"job", "private", "long", "plain", "short", "once", "host, job", "other", "both hosts", "host", "host once"}; !slices.Equal(all, want) {
		t.Errorf("current:\ngot  %q\nwant %q", all, want)
	}
	before := r.For(Lister{})
	r.Drop(before[0].public.Serial)
	if after := r.For(Lister{}); &after[0] == &before[0] || len(after) != len(before)-1 {
		t.Error("the slice of before is given after a change")
	}
}

// TestListingBySameCertificates has listers that are offered the same certificates in different orders.
func TestListingBySameCertificates(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	host := newSigner(t).PublicKey()
	plain, scoped := r.request(spec()), r.request(spec(toHosts(host)))
	for range 2 {
		if got := r.For(Lister{}); !slices.Equal(got, []*Certificate{plain, scoped}) {
			t.Errorf("unbound: got %v", serials(got))
		}
		if got := r.For(Lister{HostKey: host.Marshal(), Bound: true}); !slices.Equal(got, []*Certificate{scoped, plain}) {
			t.Errorf("bound: got %v", serials(got))
		}
	}
}

// TestListingByOneLimit has each limit that a listing goes by alone.
func TestListingByOneLimit(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		scope func(*Spec)
		not   Lister
	}{
		"no forwarding": {notForwarded, Lister{Forwarded: true}},
		"hosts":         {toHosts(newSigner(t).PublicKey()), Lister{Bound: true}},
		"job":           {inJob, Lister{PID: 12, Alive: alive}},
	} {
		r := newRig(t)
		r.family(11, job.PID)
		r.request(spec(c.scope))
		if got := r.For(c.not); len(got) != 0 {
			t.Errorf("%s: it is offered", name)
		}
		if got := r.For(Lister{PID: 11, Alive: alive}); len(got) != 1 {
			t.Errorf("%s: it is not offered", name)
		}
		if got := r.Current(); len(got) != 1 {
			t.Errorf("%s: it is not among the current ones", name)
		}
	}
}

// TestVariants has more kinds of listers than listings are kept, at once.
func TestVariants(t *testing.T) {
	t.Parallel()
	r := newRig(t)
	const n = 2*maxVariants + 3
	var keys [][]byte
	var certs []*Certificate
	for i := range n {
		k := newSigner(t).PublicKey()
		keys = append(keys, k.Marshal())
		certs = append(certs, r.request(spec(toHosts(k), named(fmt.Sprint(i)))))
	}
	var all sync.WaitGroup
	for g := range 4 {
		all.Go(func() {
			for i := range 3 * n {
				i = (i*7 + g) % n
				got := r.For(Lister{HostKey: keys[i], Bound: true})
				if len(got) != 1 || got[0] != certs[i] {
					t.Errorf("host %d: got %v", i, serials(got))
				}
				if kept := len(*r.current.Load().variants.Load()); kept > maxVariants {
					t.Errorf("%d listings are kept", kept)
				}
			}
		})
	}
	all.Wait()
}

// TestNoAllocation measures the whole process, so nothing runs beside it.
func TestNoAllocation(t *testing.T) {
	r := newRig(t)
	r.family(11, job.PID)
	host := newSigner(t).PublicKey()
	r.request(spec())
	measure := func(name string, f func()) {
		t.Helper()
		if n := testing.AllocsPerRun(100, f); n != 0 {
			t.Errorf("%s allocates %v times", name, n)
		}
	}
	measure("Current", func() { r.Current() })
	measure("For without scopes", func() { r.For(Lister{}) })
	r.request(spec(toHosts(host)))
	l := Lister{HostKey: host.Marshal(), Bound: true, PID: 11, Alive: alive}
	measure("For with hosts", func() { r.For(l) })
	r.request(spec(inJob))
	measure("For with a job", func() { r.For(l) })
	if len(r.For(l)) != 3 {
		t.Error("not all are listed")
	}
}

func BenchmarkListing(b *testing.B) {
	host := newSigner(b).PublicKey()
	for _, scoped := range []bool{false, true} {
		r := newRig(b, func(o *Options) { o.Clock = nil })
		r.authority.clock = System{}
		for i := range 4 {
			change := []func(*Spec){named(fmt.Sprint(i))}
			if scoped {
				change = append(change, toHosts(host))
			}
			r.request(spec(change...))
		}
		b.Run(fmt.Sprintf("scoped=%v", scoped), func(b *testing.B) {
			l := Lister{HostKey: host.Marshal(), Bound: true}
			b.ReportAllocs()
			for b.Loop() {
				if len(r.For(l)) != 4 {
					b.Fatal("not all are listed")
				}
			}
		})
	}
}
