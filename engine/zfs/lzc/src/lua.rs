//! Our channel programs. Short, and without comments: each run is written to the pool's history, text and all.
//!
//! What they use is in `zfs-program(8)` and `module/zfs/zcp_*.c`, the same in OpenZFS 2.1 to 2.4. Lua's numbers
//! are `i64`; arguments come as strings, `i64` and arrays of strings only.

/// Arguments: `d` dataset, `n` most snapshots. Answer: `s` from a snapshot's short name to
/// `guid createtxg creation userrefs`, `t` resume token; or `e` no such dataset, or `m` too many.
///
/// One string a snapshot instead of a table: a third of the memory, of the answer and of what is logged.
pub(crate) const INVENTORY: &str = r#"local a=...
local d,g,s,n=a.d,zfs.get_prop,{},0
if not zfs.exists(d) then return {e=true} end
for x in zfs.list.snapshots(d) do
n=n+1
if n>a.n then return {m=true} end
s[string.sub(x,#d+2)]=g(x,"guid").." "..g(x,"createtxg").." "..g(x,"creation").." "..g(x,"userrefs")
end
return {s=s,t=(g(d,"receive_resume_token"))}"#;

/// Arguments: `d` datasets, `p` a property for each. Answer: `r` from the place to `v` value and `s` source, or
/// `e` no such dataset.
pub(crate) const PROPERTIES: &str = r#"local a=...
local r={}
for i,d in ipairs(a.d) do
local x={}
if zfs.exists(d) then x.v,x.s=zfs.get_prop(d,a.p[i]) else x.e=true end
r[i]=x
end
return {r=r}"#;

/// Arguments: `d` dataset, `s` snapshot. Answer: `w` bytes; or `e` one of them does not exist.
pub(crate) const WRITTEN: &str = r#"local a=...
if not zfs.exists(a.d) or not zfs.exists(a.s) then return {e=true} end
return {w=(zfs.get_prop(a.d,"written@"..a.s))}"#;

/// Arguments: `d` datasets. Answer: `r` from the place to `p`, from a property to `v` value and `s` source, or
/// `e` no such dataset.
pub(crate) const USER_PROPERTIES: &str = r#"local a=...
local r={}
for i,d in ipairs(a.d) do
local x={}
if zfs.exists(d) then
x.p={}
for n,v,s in zfs.list.user_properties(d) do x.p[n]={v=v,s=s} end
else x.e=true end
r[i]=x
end
return {r=r}"#;

/// Arguments: `d` datasets, and for each `p` property, `k` "s" to set or "i" to inherit, `v` value. Answer: `r`
/// from the place to an error number; `n` changes that were made before one failed.
///
/// All are checked before the first is made. The look whether it exists is not for comfort: the kernel checks
/// nothing of a user property that is inherited, and `dsl_props_set_sync` panics over a dataset that is not
/// there (`VERIFY0(dsl_dataset_hold(...))`, 2.1 to 2.4).
pub(crate) const CHANGE: &str = r#"local a=...
local r,b={},false
local function f(m,i)
if a.k[i]=="s" then return m.set_prop(a.d[i],a.p[i],a.v[i]) end
return m.inherit(a.d[i],a.p[i])
end
for i,d in ipairs(a.d) do
local e=ENOENT
if zfs.exists(d) then e=f(zfs.check,i) end
if e~=0 then r[i]=e b=true end
end
if b then return {r=r,n=0} end
for i in ipairs(a.d) do
local e=f(zfs.sync,i)
if e~=0 then r[i]=e return {r=r,n=i-1} end
end
return {r=r,n=#a.d}"#;
