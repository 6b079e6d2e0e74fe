// SPDX-License-Identifier: BSD-3-Clause

//go:build (darwin || gnustep) && cgo

// The methods of the delegate class. The framework calls them on queues of its own; what they call only enqueues.

#include <Block.h>
#include <objc/objc.h>
#include <stddef.h>

#include "_cgo_export.h"

void vmux_mpc_state(id self, SEL cmd, id session, id peer, long state) { mpcState(self, state); }

void vmux_mpc_data(id self, SEL cmd, id session, id data, id peer) { mpcData(self, data); }

// Streams and resources are not of our protocol. The framework takes a delegate to have these methods.
void vmux_mpc_stream(id self, SEL cmd, id session, id stream, id name, id peer) {}
void vmux_mpc_resource(id self, SEL cmd, id session, id name, id peer, id progress) {}
void vmux_mpc_resource_end(id self, SEL cmd, id session, id name, id peer, id url, id error) {}

void vmux_mpc_found(id self, SEL cmd, id browser, id peer, id info) { mpcFound(self, peer); }

void vmux_mpc_lost(id self, SEL cmd, id browser, id peer) { mpcLost(self, peer); }

void vmux_mpc_failed(id self, SEL cmd, id from, id error) { mpcFailed(self, error); }

void vmux_mpc_answer(void *handler, int take, void *session)
{
	((void (^)(BOOL, id))handler)(take ? YES : NO, (id)session);
	Block_release(handler);
}

void vmux_mpc_invited(id self, SEL cmd, id advertiser, id peer, id context, void *handler)
{
	void *kept = (void *)Block_copy((void (^)(BOOL, id))handler);
	if (!mpcInvited(self, peer, kept))
		vmux_mpc_answer(kept, 0, NULL);
}
